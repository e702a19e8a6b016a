"""What streams go by: ids and owners of every form, lookups; the head that is recorded; the limits."""

import asyncio

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.exceptions import StreamNotFound, TooManyStreams, TooManyStreamsOfOwner
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Store

from .scenario import Conformance, assert_nothing_runs, scenario
from .tools import TEXT, Request, begin, complete, content, written

OWNERS = [
    None, "", "None", "null", "ann", "ann:", "{ann}", "ann/a", "Ann",
    "\u00e4nn", "a\u0308nn", "a nn", "*", "\n", "x" * 600,
]  # fmt: skip
IDS = [
    "a", "A", "b", "a::b", "a::", "::a", "::", ":::", "a:::b", "a:b", "a/b", "/a", "a/", "a//b", "a\\b", "..", "a%2Fb",
    "{a}", "}{", "{}", "a{b}c", "[a]", "*", "?", "a*", "a?b", "a b", " a", "a ", "a\u00a0b", "ä", "a\u0308", "😀" * 128,
    "'a'", '"a"', "a;b", "a,b", "a|b", "#a", "$a", "-", "_", "0", "None", "null", "x" * 512, "x" * 511 + "y",
]  # fmt: skip
SPLITS = [("a", "b:c"), ("a:b", "c"), ("a", "b::c"), ("a::b", "c"), ("a/b", "c"), ("a", "b/c"), ("", "a:b:c")]

HEADS = {
    "none": (),
    "no media type": ((b"x-a", b"1"),),
    "empty": ((b"content-type", b"text/plain"), (b"x-empty", b"")),
    "bytes": ((b"content-type", b"text/plain; charset=\xe4"), (b"x-name", bytes(range(0x80, 0x100)))),
    "repeated": ((b"link", b"<a>"), (b"x-a", b"1"), (b"link", b"<b>"), (b"content-type", b"text/plain")),
    "many": tuple((b"x-%d" % number, b"v" * number) for number in range(200)),
    "long": ((b"content-type", b"text/plain"), (b"x-long", b"v" * 20_000)),
}


class Naming(Conformance):
    """A stream is found under its own name, by its own owner, as it was."""

    @scenario()
    async def test_ids_of_every_form_are_streams_of_their_own(self, store: Store) -> None:
        """Compared byte for byte; slashes, colons, braces and spaces mean nothing."""
        for stream_id in IDS:
            await written(store, stream_id.encode(), key=StreamKey("ann", stream_id), head=TEXT)
        for stream_id in IDS:
            found = await store.find(StreamKey("ann", stream_id), 0)
            assert found.key == StreamKey("ann", stream_id)
            assert await content(found) == stream_id.encode()
            shown = [item.conversation_id for item in await store.lookup("ann", [stream_id])]
            assert shown[0] == stream_id
            assert sorted(shown) == sorted(
                each for each in IDS if each == stream_id or each.startswith(stream_id + "::")
            )
        for gone, stream_id in enumerate(IDS, 1):
            await store.stop(StreamKey("ann", stream_id), None)
            left = [item.conversation_id for item in await store.lookup("ann", IDS)]
            assert (len(left), left.count(stream_id)) == (len(IDS) - gone, 0)

    @scenario()
    async def test_owners_of_every_form_never_meet(self, store: Store) -> None:
        """Nobody, the empty owner and one who is called None are three."""
        keys = [StreamKey(owner, "a") for owner in OWNERS] + [StreamKey(*split) for split in SPLITS]
        for number, key in enumerate(keys):
            await written(store, b"%d" % number, key=key, head=TEXT)
        for number, key in enumerate(keys):
            found = await store.find(key, 0)
            assert found.key == key
            assert await content(found) == b"%d" % number
            assert [item.epoch for item in await store.lookup(key.owner, [key.id])] == [found.epoch]
        for key in keys:
            await store.stop(key, None)
            with pytest.raises(StreamNotFound):
                await store.find(key, 0)
            assert await store.lookup(key.owner, [key.id]) == []
            rest = keys[keys.index(key) + 1 :]
            assert [(await store.find(each, 0)).key for each in rest[:1]] == rest[:1]

    @scenario()
    async def test_a_lookup_shows_what_was_asked_for_and_its_variants_once(self, store: Store) -> None:
        """In the order of the question, in every state; and nothing that merely looks alike."""
        live = await begin(store, StreamKey("ann", "live"))
        for stream_id in ["done", "done::x", "done::x::y", "done:x", "done/x", "donee", "do", "x::only", "y:::z"]:
            await written(store, b"data: x\n\n", key=StreamKey("ann", stream_id))
        await Request(StreamKey("ann", "queued::v")).reserve(store)
        for owner in ["bob", None]:
            for stream_id in ["done", "done::z", "foreign"]:
                await written(store, b"data: x\n\n", key=StreamKey(owner, stream_id))

        async def shown(*ids: str) -> list[str]:
            return [item.conversation_id for item in await store.lookup("ann", ids)]

        assert await shown() == []
        assert await shown("", "::", "none", "foreign", "only", "don", "queued::") == []
        assert sorted(await shown("done")) == ["done", "done::x", "done::x::y"]
        assert sorted(await shown("done::x")) == ["done::x", "done::x::y"]
        assert await shown("y") == await shown("y:") == ["y:::z"]
        assert await shown("x", "live", "do", "live") == ["x::only", "live", "do"]
        assert await shown("queued", "live", "do") == ["queued::v", "live", "do"]
        assert await shown("done::x::y", "done::x") == ["done::x::y", "done::x"]
        assert sorted(await shown("done", "done::x", "done::x::y", "done")) == ["done", "done::x", "done::x::y"]
        items = {item.conversation_id: item for item in await store.lookup("ann", ["queued", "live", "done"])}
        assert items["queued::v"].status is ResumableStatus.QUEUED
        assert items["live"] == live.item
        assert items["done::x"].status is ResumableStatus.COMPLETED

    @scenario()
    async def test_a_lookup_takes_a_thousand_ids(self, store: Store) -> None:
        """As many as the route allows."""
        await begin(store, StreamKey("ann", "7"))
        items = await store.lookup("ann", [str(number) for number in range(1000)])

        assert [item.conversation_id for item in items] == ["7"]

    @scenario()
    async def test_a_variant_that_was_stopped_is_looked_up_no_more(self, store: Store) -> None:
        """The others are; a new one is, too."""
        for stream_id in ["a::x", "a::y"]:
            await begin(store, StreamKey("ann", stream_id))
        await store.stop(StreamKey("ann", "a::x"), None)
        assert [item.conversation_id for item in await store.lookup("ann", ["a"])] == ["a::y"]

        await begin(store, StreamKey("ann", "a::x"))
        assert sorted(item.conversation_id for item in await store.lookup("ann", ["a"])) == ["a::x", "a::y"]

    @pytest.mark.parametrize("headers", HEADS.values(), ids=HEADS)
    @scenario()
    async def test_the_head_is_recorded_as_it_was(self, store: Store, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Status and headers: order, repetition and every byte."""
        head = Head(206, headers)
        stream = await written(store, b"x", head=head)
        found = await store.find(stream.key, 0)
        [item] = await store.lookup(stream.key.owner, [stream.key.id])

        assert found.head == stream.head == head
        assert item.content_type == found.head.content_type == head.content_type
        assert await content(found) == b"x"

    @scenario(max_streams_per_owner=2)
    async def test_an_owner_has_so_many_streams_at_once(self, store: Store) -> None:
        """Queued and live ones; whatever ends makes room. Others have their own, and nobody has no limit."""
        keys = [StreamKey("ann", str(number)) for number in range(9)]

        async def check_that_it_is_full() -> None:
            with pytest.raises(TooManyStreamsOfOwner):
                await store.reserve(Request(keys[8]).reservation, "replace")
            assert await store.lookup("ann", ["8"]) == []

        live = await begin(store, keys[0])
        queued = await Request(keys[1]).reserve(store)
        await check_that_it_is_full()
        for number in range(3):
            await begin(store, StreamKey(None, str(number)))
        await begin(store, StreamKey("bob", "0"))

        await store.release(queued.reservation)
        stopped = await begin(store, keys[2])
        await check_that_it_is_full()
        await store.stop(stopped.key, None)
        queued = await Request(keys[3]).reserve(store)
        await check_that_it_is_full()
        await store.stop(queued.reservation.key, None)
        await begin(store, keys[4])
        await check_that_it_is_full()
        await complete(store, live)
        await begin(store, keys[5])
        await check_that_it_is_full()

    @scenario(max_streams_per_owner=1)
    async def test_a_new_stream_takes_the_place_of_the_live_one_that_it_replaces(self, store: Store) -> None:
        """At the limit, too; again and again."""
        stream = await begin(store)
        for _ in range(3):
            stream = await begin(store)
        assert (await store.find(stream.key, 0)).epoch == stream.epoch
        with pytest.raises(TooManyStreamsOfOwner):
            await begin(store, stream.key._replace(id="other"))

    @scenario(max_streams=3)
    async def test_all_together_have_so_many_streams_at_once(self, store: Store) -> None:
        """Whoever they belong to."""
        first = await begin(store, StreamKey(None, "a"))
        for owner in ["ann", "bob"]:
            await Request(StreamKey(owner, "a")).reserve(store)
        with pytest.raises(TooManyStreams) as refused:
            await begin(store, StreamKey("eve", "a"))
        assert not isinstance(refused.value, TooManyStreamsOfOwner)
        await complete(store, first)
        await begin(store, StreamKey("eve", "a"))

    def test_a_store_that_was_closed_can_be_used_again(self) -> None:
        """Also on another event loop: an application may be started twice in one process."""
        stores: list[Store] = []

        async def use(chunk: bytes) -> None:
            if not stores:
                stores.append(await self.open_store())
                stores[0].configure(Limits())
            stream = await written(stores[0], chunk)
            assert chunk in await content(await stores[0].find(stream.key, 0))
            await stores[0].aclose()
            await stores[0].aclose()
            assert_nothing_runs()

        asyncio.run(use(b"data: before\n"))
        asyncio.run(use(b"data: after\n"))
