"""Tests of what upstream can make this process count or remember by name: hosts that pages list, and statuses."""

from __future__ import annotations

from mypypi.errors import MyPyPiError, UpstreamDown
from mypypi.observability import metrics
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.origins import MOST_ORIGINS, Origins
from mypypi.upstream.pause_gauge import OTHER
from tests.upstream.cases import BreakerTestCase, breaker_metric_is_set

OWN = "https://index.example:443"


def labels() -> set[str]:
    """The hosts that the metric of the breaker names."""
    return {sample.labels["host"] for metric in metrics.BREAKER_OPEN.collect() for sample in metric.samples}


class LabelTest(BreakerTestCase):
    """Metrics have few labels, whatever pages list and upstream answers."""

    def hold_back(self, url: str) -> None:
        self.wire.refuses = True
        for _ in range(5):
            self.assertIn("refused", str(self.failing(self.file(url), UpstreamDown)))
        self.wire.refuses = False

    def test_hosts_of_pages_share_a_label(self) -> None:
        """Twenty hosts of a page that are held back add one label; upstream's own host has its name."""
        before = labels() | {OTHER}
        for number in range(20):
            self.hold_back(f"https://files{number}.example/a.whl")
        assert self.upstream._breaker is not None
        self.assertEqual(20, len(self.upstream._breaker.gauge.open()), "all of them are held back")
        self.assertEqual(before, labels())
        self.assertFalse(breaker_metric_is_set())
        self.refuse_connections()
        self.assertTrue(breaker_metric_is_set())
        self.assertEqual(before | {"index.example"}, labels())

    def test_another_port_of_upstreams_host_is_another_origin(self) -> None:
        """A page that lists another port of upstream's host does not set upstream's own metric."""
        self.hold_back("https://index.example:8443/a.whl")
        self.assertFalse(breaker_metric_is_set())
        self.assertTrue(breaker_metric_is_set(OTHER))

    def test_shared_label_is_set_until_the_last_pause_ends(self) -> None:
        """The shared label is 1 while any of its hosts is held back."""
        self.hold_back("https://one.example/a.whl")
        self.clock.advance(0.5)
        self.hold_back("https://two.example/a.whl")
        self.clock.advance(0.6)
        self.assertTrue(breaker_metric_is_set(OTHER))
        self.clock.advance(0.5)
        self.assertFalse(breaker_metric_is_set(OTHER))

    def test_invalid_statuses_share_a_label(self) -> None:
        """Upstream may send any number as a status. All invalid ones count as one outcome."""
        before = metrics.UPSTREAM_REQUESTS.labels("page", "invalid")._value.get()
        statuses = (7, 99, 600, 999, 12345, 10**30)
        for status in statuses:
            pending = self.send()
            self.wire.last.answer(status, b"")
            self.failing(pending, MyPyPiError)
        after = metrics.UPSTREAM_REQUESTS.labels("page", "invalid")._value.get()
        self.assertEqual(len(statuses), after - before)


class OriginsTest(BreakerTestCase):
    """The breaker remembers the origins that were seen last."""

    def test_number_of_origins_is_bounded(self) -> None:
        """Of any number of origins, a thousand are remembered, and the one in use is among them."""
        origins = Origins()
        own = origins.seen(OWN)
        own.failed_urls.append("https://index.example/a")
        for number in range(3 * MOST_ORIGINS):
            origins.seen(f"https://files{number}.example:443")
            assert origins.seen(OWN) is own
        self.assertEqual(MOST_ORIGINS, len(origins))

    def test_failures_count_beside_any_number_of_origins(self) -> None:
        """Failing connections to upstream count, although a page lists more hosts than are remembered."""
        for number in range(MOST_ORIGINS + 10):
            pending = self.file(f"https://files{number}.example/a.whl")
            self.wire.last.answer(200, b"content")
            self.now(pending).close()
        self.refuse_connections()
        self.assert_paused()

    def test_number_of_silent_urls_is_bounded(self) -> None:
        """An origin that never answers has a hundred URLs that are remembered, however many it is asked for."""
        origin = Origins().seen(origin_of("https://files.example/a"))
        for number in range(1000):
            origin.note_silence(f"https://files.example/{number}")
        self.assertEqual(100, len(origin.silent_urls))
