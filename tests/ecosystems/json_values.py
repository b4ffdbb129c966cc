"""A strategy for any JSON value, for pages whose members have unexpected types."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
