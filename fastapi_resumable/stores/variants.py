"""Which longer ids an id stands for: `a::b::c` is a variant of `a` and of `a::b`. One entry for each id."""

from bisect import bisect_left


class VariantIndex:
    """The ids of streams, sorted, by owner and by what comes before their first `::`."""

    def __init__(self) -> None:
        self._by_root: dict[tuple[str | None, str], list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_root.values()))

    def note(self, owner: str | None, stream_id: str, *, held: bool) -> None:
        """Note whether there is a stream under an id that has a `::`."""
        root = (owner, _root(stream_id))
        ids = self._by_root.get(root, [])
        at = bisect_left(ids, stream_id)
        was_held = ids[at : at + 1] == [stream_id]
        if held and not was_held:
            ids.insert(at, stream_id)
            self._by_root[root] = ids
        elif was_held and not held:
            del ids[at]
            if not ids:
                del self._by_root[root]

    def find(self, owner: str | None, stream_id: str) -> list[str]:
        """The ids that are variants of `stream_id`, sorted."""
        ids = self._by_root.get((owner, _root(stream_id)))
        if ids is None:
            return []
        # Right after `::`, in the order of characters, comes `:;`.
        return ids[bisect_left(ids, stream_id + "::") : bisect_left(ids, stream_id + ":;")]


def _root(stream_id: str) -> str:
    return stream_id.partition("::")[0]
