"""What §4 ("The log is the wire") and §6 ("HTTP") of the contract promise, sentence by sentence, with its tests.

`test_wire_promises.py` sees to it that every sentence has a test and that every test named here exists.
"""

READERS = "test_wire_readers.py::test_"
FRAMING = "test_wire_framing.py::test_"
IDS = "test_wire_ids.py::test_"
KEEPALIVE = "test_wire_keepalive.py::test_"
RECORD = "test_wire_record.py::test_"
CLIENTS = "test_wire_clients.py::test_"
SERVERS = "test_wire_servers.py::test_"
REPLAY = "test_http_replay.py::test_"
NAMES = "test_http_ids.py::test_"
LOOKUP = "test_http_lookup.py::test_"
STOP = "test_http_stop.py::test_"
START = "test_http_start.py::test_"
PLACES = "test_http_locations.py::test_"
OPENAPI = "test_http_openapi.py::test_"

PROMISES: list[tuple[str, str, list[str]]] = [
    (
        "4",
        "every client sees exactly the bytes of the log, in order, from its offset",
        [
            READERS + "the_first_answer_a_replay_ten_live_readers_and_a_late_one_are_the_same_bytes",
            READERS + "a_reader_that_starts_in_mid_stream_gets_the_past_and_then_the_present",
            READERS + "a_stream_cut_at_every_byte_goes_on_from_that_byte",
            READERS + "readers_of_different_pace_of_a_large_stream_see_the_same_bytes",
            READERS + "a_reader_one_byte_at_a_time_sees_the_same_bytes",
            SERVERS + "every_server_shows_every_client_the_same_bytes",
        ],
    ),
    (
        "4",
        "The first response is a reader like any other.",
        [
            READERS + "the_first_response_is_no_more_than_a_reader",
            SERVERS + "under_every_server_the_producer_goes_on_without_its_client",
            READERS + "the_first_answer_a_replay_ten_live_readers_and_a_late_one_are_the_same_bytes",
        ],
    ),
    (
        "4",
        (
            "Keep-alives, the injected `id:` lines and the terminal event are appended to the log, not to one "
            "client's socket."
        ),
        [
            KEEPALIVE + "keep_alives_are_the_same_bytes_for_every_reader",
            READERS + "the_terminal_event_is_part_of_the_log",
            READERS + "the_cancelled_event_is_what_every_reader_sees_last",
            IDS + "every_event_with_data_gets_the_offset_right_after_itself",
        ],
    ),
    (
        "4",
        "A client that counts bytes and a client that uses event ids both resume exactly.",
        [
            READERS + "a_connection_reset_at_every_byte_of_a_live_stream_loses_nothing",
            READERS + "an_event_stream_resumes_at_each_of_its_events",
            READERS + "a_live_stream_resumes_by_id_and_by_offset_alike",
            KEEPALIVE + "resume_works_at_every_byte_of_a_stream_with_keep_alives",
            CLIENTS + "httpx_sse_reads_and_resumes",
            CLIENTS + "curl_starts_reads_and_resumes",
        ],
    ),
    (
        "4",
        "(The one exception: a reader that lost its place is told so on its own wire.)",
        [
            READERS + "a_reader_that_lost_its_place_is_told_on_its_own_wire_alone",
        ],
    ),
    (
        "4",
        "A keep-alive is a comment *line*, `: ping` and one newline: no blank line, no id.",
        [
            KEEPALIVE + "a_keep_alive_is_one_comment_line_without_blank_line_or_id",
            KEEPALIVE + "a_keep_alive_does_not_fall_into_an_event",
            KEEPALIVE + "a_keep_alive_does_not_fall_into_a_line_end",
        ],
    ),
    (
        "4",
        (
            "Some decoders, the OpenAI SDKs' among them, once they have seen an id dispatch an event at every "
            "blank line, and die of an empty one."
        ),
        [
            CLIENTS + "the_openai_sdk_reads_a_stream_with_ids_and_keep_alives",
            KEEPALIVE + "a_decoder_that_dispatches_at_every_blank_line_sees_no_empty_event",
        ],
    ),
    (
        "4",
        (
            "For the same reason, while ids are injected, a block of the app's that holds only comments or "
            "`retry:` (FastAPI and sse-starlette ping that way) is recorded without its blank line."
        ),
        [
            FRAMING + "a_block_of_comments_or_retry_loses_its_blank_line",
            FRAMING + "any_chunking_of_any_line_ends_is_recorded_as_the_same_events",
            FRAMING + "a_ping_of_the_app_is_shown_at_once",
        ],
    ),
    (
        "4",
        "Our own keep-alive comes after `ping` seconds without a byte from the app.",
        [
            KEEPALIVE + "a_stream_that_is_never_silent_has_no_keep_alive",
            KEEPALIVE + "a_large_ping_leaves_a_short_silence_alone",
        ],
    ),
    (
        "4",
        (
            "For `text/event-stream` the log grows by whole events: a stop, crash or reconnect never shows half "
            "an event."
        ),
        [
            FRAMING + "half_an_event_is_never_shown",
            FRAMING + "a_stop_shows_no_half_event",
            FRAMING + "a_failure_shows_no_half_event",
            FRAMING + "a_reconnect_shows_no_half_event",
            IDS + "without_event_ids_the_log_still_grows_by_whole_events",
        ],
    ),
    (
        "4",
        (
            "`\\n\\n`, `\\r\\n\\r\\n`, `\\r\\r` and a BOM are understood; an event may arrive split over any number of "
            "chunks, at any byte, inside a UTF-8 character."
        ),
        [
            FRAMING + "any_chunking_of_any_line_ends_is_recorded_as_the_same_events",
            FRAMING + "any_stream_resumes_at_each_event_wherever_it_was_cut",
            FRAMING + "whatever_the_app_sends_a_browser_reads_the_same_from_the_log",
            FRAMING + "an_event_is_shown_when_its_blank_line_has_come",
            FRAMING + "events_in_chunks_of_any_size_are_whole",
            FRAMING + "a_byte_order_mark_is_understood",
            FRAMING + "a_byte_order_mark_hides_no_field",
            KEEPALIVE + "a_keep_alive_before_a_byte_order_mark_spoils_nothing",
        ],
    ),
    (
        "4",
        "What is left over at the end is recorded as it is.",
        [
            FRAMING + "what_is_left_over_at_the_end_is_recorded_as_it_is",
        ],
    ),
    (
        "4",
        'An "event" that never ends is bounded by `max_stream_bytes`.',
        [
            FRAMING + "an_event_that_never_ends_is_bounded",
            FRAMING + "an_event_larger_than_the_bound_is_followed_by_whole_events",
        ],
    ),
    (
        "4",
        (
            "Each event that has `data` and no `id:` of its own gets one, as its last line: `id: "
            "<epoch>-<offset>` where offset is the position right after that event, its own `id:` line included "
            "(the epoch has a form of its own, 16 lowercase base-32 characters say, so that no id of an app is "
            "mistaken for one of ours)."
        ),
        [
            IDS + "an_event_gets_an_id_as_its_last_line",
            IDS + "every_event_with_data_gets_the_offset_right_after_itself",
            IDS + "an_epoch_is_sixteen_lowercase_base32_characters",
            IDS + "an_event_without_data_gets_no_id",
            IDS + "fields_that_only_look_like_ours_are_not_taken_for_them",
            FRAMING + "several_lines_of_data_are_one_event_with_one_id",
            FRAMING + "many_events_in_one_chunk_get_an_id_each",
        ],
    ),
    (
        "4",
        "So `?from=<offset>` and `Last-Event-ID` mean the same place.",
        [
            READERS + "offset_and_event_id_name_the_same_place",
        ],
    ),
    (
        "4",
        "Events that carry the app's own ids keep them, and resuming by those ids works too.",
        [
            IDS + "an_id_of_the_apps_own_is_kept_and_resumed_by",
            IDS + "an_own_id_may_stand_anywhere_in_its_event",
            IDS + "a_stream_of_own_ids_resumes_at_each",
            IDS + "an_own_id_that_comes_without_data_is_resumed_by",
            IDS + "a_live_stream_resumes_by_an_own_id",
            IDS + "without_event_ids_own_ids_resume_still",
        ],
    ),
    (
        "4",
        "`event_ids=False` leaves the bytes untouched.",
        [
            IDS + "without_event_ids_the_bytes_are_the_applications_own",
            FRAMING + "without_event_ids_no_byte_is_changed_whatever_the_app_sends",
        ],
    ),
    (
        "4",
        "Any other media type (NDJSON, text, bytes, audio) is recorded as it comes; resume is by byte offset.",
        [
            RECORD + "any_other_media_type_is_recorded_as_it_comes",
            RECORD + "bytes_that_are_no_events_are_shown_as_they_come",
            RECORD + "an_event_stream_is_known_by_its_media_type_alone",
            KEEPALIVE + "only_event_streams_have_keep_alives",
        ],
    ),
    (
        "4",
        (
            "The response's status and headers are part of the record: a replay has the same media type and the "
            "same end-to-end headers (e.g. `x-vercel-ai-ui-message-stream`), never hop-by-hop ones, `Set-Cookie`, "
            "`Date`, `Server`, `Vary`, `Access-Control-*`, or a middleware's `Content-Length` or "
            "`Content-Encoding`; what we set ourselves replaces, never doubles."
        ),
        [
            RECORD + "the_status_is_part_of_the_record",
            RECORD + "end_to_end_headers_are_recorded_and_others_are_not",
            RECORD + "hop_by_hop_headers_are_never_replayed",
            RECORD + "what_we_set_ourselves_replaces_and_never_doubles",
            RECORD + "a_compressing_middleware_does_not_reach_the_log",
            RECORD + "a_length_that_a_middleware_has_set_is_not_replayed",
        ],
    ),
    (
        "4",
        "A 2xx answer that is no stream (plain JSON) under a stream id is recorded like any other.",
        [
            RECORD + "an_answer_that_is_no_stream_is_recorded_like_any_other",
            RECORD + "an_answer_without_a_body_is_recorded_too",
        ],
    ),
    (
        "4",
        "A byte is not shown before it can be replayed (for Redis: acknowledged by Redis, in batches).",
        [
            READERS + "a_byte_that_was_shown_can_be_replayed_at_once",
        ],
    ),
    (
        "6",
        "Under `prefix` (default `/v1`).",
        [
            OPENAPI + "the_prefix_is_where_the_routes_are",
            PLACES + "content_location_is_right_wherever_the_router_is",
        ],
    ),
    (
        "6",
        "Ids may contain slashes and `::`; they may be given in the path or, as `conv_id`, in the query.",
        [
            NAMES + "any_id_leads_back_to_its_stream",
            NAMES + "any_id_may_be_given_in_the_path",
            NAMES + "every_printable_text_is_an_id",
            NAMES + "the_id_in_the_path_and_in_the_query_stop_the_same_stream",
        ],
    ),
    (
        "6",
        ("`GET /stream/{id}?from=N`, `GET /stream?conv_id={id}&from=N`: 200, replay from N, then live until the end"),
        [
            REPLAY + "a_replay_begins_at_from_and_ends_with_the_stream",
            REPLAY + "from_the_tail_of_a_live_stream_waits_for_more",
            REPLAY + "a_replay_on_a_connection_that_is_kept_alive_frames_every_answer",
            REPLAY + "boundaries_of_a_replay_are_those_of_the_log",
        ],
    ),
    (
        "6",
        (
            "header `Last-Event-ID` (wins over `from`): the same, from that event on; 204 if the stream is "
            "finished and nothing is left that a client would dispatch (so an `EventSource` stops reconnecting)"
        ),
        [
            REPLAY + "last_event_id_wins_over_from",
            REPLAY + "a_finished_stream_with_nothing_left_to_dispatch_answers_204",
            REPLAY + "what_no_client_would_dispatch_is_nothing",
            REPLAY + "something_left_to_dispatch_is_answered_200",
            REPLAY + "a_live_stream_with_nothing_left_waits",
            KEEPALIVE + "204_is_not_kept_back_by_keep_alives_at_the_end",
            IDS + "a_failed_stream_resumes_after_its_terminal_event_with_204",
        ],
    ),
    (
        "6",
        ("`from` = the tail of a finished stream: 200, empty body. (`from` may be any byte, also in mid-event.)"),
        [
            REPLAY + "from_the_tail_of_a_finished_stream_is_an_empty_body",
            REPLAY + "from_at_the_tail_is_never_204",
            REPLAY + "from_may_be_any_byte",
        ],
    ),
    (
        "6",
        "no `from`, no `Last-Event-ID`: as `from=0` (so `offset_lost` once the head was dropped)",
        [
            REPLAY + "without_from_or_event_id_a_replay_begins_at_the_start",
            REPLAY + "an_offset_that_was_dropped_is_lost",
        ],
    ),
    (
        "6",
        "`HEAD` of the same: head only: status, headers, `X-Stream-*`",
        [
            REPLAY + "head_is_the_head_of_the_same_get",
            REPLAY + "head_answers_with_the_status_that_get_would",
            CLIENTS + "curl_reads_only_the_head_when_it_asks_for_it",
        ],
    ),
    (
        "6",
        (
            "`DELETE /stream/{id}`, `DELETE /stream?conv_id={id}` (`&epoch=`): 204, always (finished, unknown and "
            "foreign too: it tells nothing)"
        ),
        [
            STOP + "a_live_stream_is_stopped",
            STOP + "whatever_the_stream_the_answer_is_the_same",
            STOP + "a_foreign_stream_is_not_touched",
            STOP + "a_stop_of_another_epoch_does_nothing",
            STOP + "a_stopped_id_can_be_used_again",
            STOP + "a_stop_while_the_stream_is_queued_cancels_the_request",
            STOP + "two_stops_at_once_are_one",
        ],
    ),
    (
        "6",
        (
            '`POST /streams/lookup` `{"conversation_ids": ["a", "b"]}`: 200, a JSON array; only ids asked for; an '
            "id also matches its variants `id::anything`"
        ),
        [
            LOOKUP + "only_ids_asked_for_are_listed",
            LOOKUP + "an_id_matches_its_variants",
            LOOKUP + "a_variant_is_found_where_the_id_itself_is_no_stream",
            LOOKUP + "members_that_the_route_does_not_know_are_ignored",
            STOP + "a_stop_does_not_stop_variants",
        ],
    ),
    (
        "6",
        "Ids are compared byte for byte.",
        [
            NAMES + "ids_are_compared_byte_for_byte",
            NAMES + "a_slash_at_the_end_is_part_of_the_id",
            NAMES + "ids_of_many_streams_do_not_meet",
        ],
    ),
    (
        "6",
        (
            "A header value is taken as UTF-8; `X-Conversation-Id` of a response echoes it, and "
            "`Content-Location` is percent-encoded ASCII that leads back to the stream."
        ),
        [
            NAMES + "a_header_is_utf8",
            NAMES + "a_header_that_is_no_utf8_is_no_accident",
            NAMES + "an_escape_that_is_no_utf8_is_no_accident",
            NAMES + "any_id_leads_back_to_its_stream",
            NAMES + "a_client_of_the_usual_kind_follows_content_location",
        ],
    ),
    (
        "6",
        "`from=` without a value is as if absent.",
        [
            REPLAY + "from_without_a_value_is_as_if_absent",
        ],
    ),
    (
        "6",
        "GET, HEAD and DELETE without any id answer 400 `invalid_stream_id`.",
        [
            REPLAY + "a_request_without_any_id_is_refused",
        ],
    ),
    (
        "6",
        "A stream found twice by a lookup is listed once.",
        [
            LOOKUP + "a_stream_found_twice_is_listed_once",
            LOOKUP + "the_newest_epoch_of_an_id_is_listed",
        ],
    ),
    (
        "6",
        (
            "A lookup item: `conversation_id`, `is_done`, `total_bytes`, `started_at`, `completed_at` (unix "
            "seconds; 0 while live), and `status`, `epoch`, `dropped_bytes`, `content_type`."
        ),
        [
            LOOKUP + "an_item_says_what_a_finished_stream_is",
            LOOKUP + "an_item_says_what_a_live_stream_is",
            LOOKUP + "an_item_says_what_became_of_a_failed_stream",
            LOOKUP + "an_item_counts_what_was_dropped",
            LOOKUP + "a_stopped_stream_is_not_found",
        ],
    ),
    (
        "6",
        "There is no listing route, on purpose.",
        [
            REPLAY + "there_is_no_listing_route",
            REPLAY + "other_methods_are_not_allowed",
        ],
    ),
    (
        "6",
        (
            "Responses of a resumable POST and of replays carry `X-Conversation-Id`, `X-Stream-Epoch`, "
            "`Content-Location`: the replay URL (right also under `include_router(prefix=...)`, mounts and "
            "`root_path`), `Cache-Control: no-store, no-transform`, `X-Accel-Buffering: no`;"
        ),
        [
            START + "the_answer_and_every_replay_say_which_stream_it_is",
            START + "refusals_are_not_stored_either",
            PLACES + "content_location_is_right_wherever_the_router_is",
            PLACES + "content_location_is_right_behind_a_proxy",
            PLACES + "content_location_is_followed_by_a_url_library",
        ],
    ),
    (
        "6",
        (
            "the stream id of a response is the one that was asked for, so a client that lets the server choose "
            "(`auto_id=True`) learns it there."
        ),
        [
            START + "a_server_that_chooses_the_id_tells_it",
            START + "without_auto_id_no_id_is_chosen",
        ],
    ),
    (
        "6",
        (
            "`Prefer: respond-async` on the POST answers 202 with `Location` and a lookup item, and generates in "
            "the background."
        ),
        [
            START + "respond_async_answers_202_with_a_place_and_an_item",
            START + "a_preference_is_read_as_http_writes_it",
            START + "another_preference_changes_nothing",
            START + "respond_async_is_answered_though_the_endpoint_is_slow",
            START + "respond_async_passes_a_refusal_of_the_app_on",
            START + "respond_async_without_a_stream_id_is_a_plain_request",
        ],
    ),
    (
        "6",
        'Errors are FastAPI\'s `{"detail": {"code": ..., "message": ...}}`, documented in OpenAPI:',
        [
            OPENAPI + "the_errors_are_documented_with_examples",
            OPENAPI + "every_route_is_documented_with_words",
            OPENAPI + "a_replay_documents_what_it_takes_and_gives",
            OPENAPI + "a_stop_documents_204_and_the_epoch",
            OPENAPI + "a_lookup_documents_its_body_and_its_items",
        ],
    ),
    (
        "6",
        "unknown, expired, foreign: 404 `stream_not_found`",
        [
            REPLAY + "an_unknown_stream_is_not_found",
            REPLAY + "an_expired_stream_is_not_found",
            LOOKUP + "a_foreign_stream_does_not_exist",
        ],
    ),
    (
        "6",
        "`from` not a non-negative integer: 400 `invalid_offset`",
        [
            REPLAY + "a_from_that_is_no_plain_number_is_refused",
            REPLAY + "leading_zeros_are_digits",
        ],
    ),
    (
        "6",
        "offset older than what is retained (body names the earliest): 400 `offset_lost`",
        [
            REPLAY + "an_offset_that_was_dropped_is_lost",
            REPLAY + "an_event_id_whose_place_was_dropped_is_lost",
            REPLAY + "a_large_stream_resumes_at_every_event_that_is_left",
        ],
    ),
    (
        "6",
        "offset past the tail: 416 `offset_out_of_range`",
        [
            REPLAY + "an_offset_past_the_tail_is_out_of_range",
            REPLAY + "an_event_id_past_the_tail_is_out_of_range",
        ],
    ),
    (
        "6",
        "event id or `epoch=` of an earlier epoch: 409 `stream_replaced`",
        [
            REPLAY + "a_place_in_an_earlier_epoch_was_replaced",
        ],
    ),
    (
        "6",
        "an id of the app's own that the log does not hold: 400 `unknown_event_id`",
        [
            REPLAY + "an_unknown_id_of_the_apps_own_is_refused",
            REPLAY + "an_id_of_the_apps_own_that_was_dropped_is_unknown",
            IDS + "an_unknown_own_id_is_refused",
        ],
    ),
    (
        "6",
        "the stream is still queued after `pending_timeout`: 503 + `Retry-After`, `stream_pending`",
        [
            REPLAY + "a_stream_that_is_still_queued_is_pending",
            REPLAY + "a_reader_that_waits_for_a_queued_stream_gets_it",
        ],
    ),
    (
        "6",
        "conflict under `reject`: 409 `stream_exists`",
        [
            START + "a_conflict_is_rejected_where_that_is_the_rule",
        ],
    ),
    (
        "6",
        (
            "too many streams (owner / server), shutting down: 429 / 503 + `Retry-After`, `too_many_streams`, "
            "`shutting_down`"
        ),
        [
            START + "too_many_streams_of_the_server_are_refused",
            START + "too_many_streams_of_an_owner_are_refused",
            START + "a_stream_that_is_replaced_does_not_count_twice",
            START + "a_server_that_shuts_down_takes_no_new_streams",
        ],
    ),
    (
        "6",
        ('bad stream id (empty after strip is "no id"; over 512 bytes; control characters): 400 `invalid_stream_id`'),
        [
            NAMES + "an_id_over_512_bytes_is_refused_everywhere",
            NAMES + "an_id_with_control_characters_is_refused",
            NAMES + "a_header_with_a_control_character_is_refused",
            NAMES + "an_empty_id_is_no_id",
        ],
    ),
    (
        "6",
        "bad lookup body, over 1,000 ids: 400 `invalid_request`",
        [
            LOOKUP + "a_bad_body_is_an_invalid_request",
            LOOKUP + "a_thousand_ids_may_be_asked_for",
            LOOKUP + "a_bad_id_in_a_lookup_finds_nothing_or_is_refused",
        ],
    ),
    (
        "6",
        ("Auth: `include_router(resumable.router, dependencies=[...])` guards every route, and `owner` scopes them."),
        [
            PLACES + "dependencies_of_the_router_guard_every_route",
            LOOKUP + "a_foreign_stream_does_not_exist",
            STOP + "a_foreign_stream_is_not_touched",
        ],
    ),
    # What other sections promise and these files look at on the wire as well.
    (
        "2",
        "one router, one decorator, no change to the endpoint's body",
        [START + "an_endpoint_may_ask_for_the_request_itself"],
    ),
    (
        "2",
        "The endpoint's entry in OpenAPI does not change in any of these.",
        [
            OPENAPI + "the_users_endpoints_are_described_as_without_us",
            OPENAPI + "the_dependency_form_adds_nothing_to_the_endpoint",
        ],
    ),
    (
        "2",
        (
            "Names of public pydantic models start with `Resumable`, so that no schema of the user's is renamed "
            "in OpenAPI."
        ),
        [
            OPENAPI + "the_users_schemas_keep_their_names",
        ],
    ),
    (
        "5",
        (
            "Independently of the rule, a POST that repeats the `Idempotency-Key` of the current epoch attaches "
            "(running) or replays (finished), and never runs the endpoint again: that is what makes a retry safe "
            "also just after the end."
        ),
        [
            START + "a_repeated_idempotency_key_replays_a_finished_stream",
            START + "a_repeated_idempotency_key_attaches_to_a_live_stream",
            START + "another_idempotency_key_begins_a_new_epoch",
            START + "an_idempotency_key_of_an_earlier_epoch_is_forgotten",
            START + "an_idempotency_key_is_that_of_its_stream",
        ],
    ),
    (
        "5",
        (
            "While somebody is reading, a producer may run ahead of the slowest *attached* reader by at most the "
            "log's bound, then waits, so that nothing an attached reader still needs is dropped;"
        ),
        [
            READERS + "a_stream_larger_than_the_bound_reaches_an_attached_reader_whole",
        ],
    ),
    (
        "5",
        (
            'The log ends with `event: error` and the JSON `data` `{"code": ..., "message": ..., "error": '
            '{"code": ..., "message": ...}}` (the inner object is what the OpenAI SDKs look for: they raise '
            "`APIError`); the exception's text is logged on the server, not sent."
        ),
        [
            START + "the_error_event_has_the_documented_form",
            CLIENTS + "the_openai_sdk_raises_on_our_error_event",
            CLIENTS + "the_openai_sdk_raises_when_the_stream_is_stopped",
            CLIENTS + "the_openai_sdk_reads_a_plain_refusal",
        ],
    ),
    (
        "5",
        "Non-SSE media types end by closing the connection uncleanly, so a client can tell.",
        [
            RECORD + "a_failure_of_another_media_type_ends_uncleanly",
            SERVERS + "under_every_server_a_broken_download_is_told_from_a_whole_one",
            RECORD + "a_stop_of_another_media_type_ends_uncleanly",
            RECORD + "an_event_stream_that_fails_ends_cleanly",
            CLIENTS + "curl_can_tell_a_failed_download",
        ],
    ),
]
