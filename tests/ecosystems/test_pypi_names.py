"""Tests of which project a file belongs to."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from mypypi.ecosystems.pypi_names import is_file_of, projects_of

_PARTS = st.sampled_from([
    *("a", "A_b", "a.b", "a-b", "-", "1.0", "py3-none-any", ".whl", ".WHL", ".metadata", ".asc", ".tar.gz"),
    *("/provenance", "/", "%3F", "?x", "%61", "é", "\n", "x" * 201),
])  # fmt: skip


@given(st.lists(_PARTS, max_size=8).map("".join), st.sampled_from(["a", "a-b", "1-0"]))
@example("https/files.example/a-1.0-py3-none-any.whl", "a")
@example("https/files.example/a-1.0-py3-none-any.whl.metadata", "a")
@example("https/files.example/a-1.0?x.whl", "a")
@example("https/files.example/a-1.0%3Fx.whl", "a")
@example("https/files.example/A_b-1.0-py3-none-any.whl", "a-b")
def test_a_file_belongs_to_its_projects(link: str, project: str) -> None:
    """The quick answer is that of all projects to which the file may belong."""
    assert is_file_of(link, project) == (project in projects_of(link))
