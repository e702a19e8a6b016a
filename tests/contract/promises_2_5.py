"""What §2 ("What the user writes") and §5 ("Life of a stream") of the contract promise, with the tests of each part.

`test_life_promises.py` sees to it that every sentence has a test and that every test named here exists.
"""

MATRIX = "test_faces_matrix.py::test_"
REQUEST = "test_faces_request.py::test_"
SETTINGS = "test_faces_settings.py::test_"
START = "test_life_start.py::test_"
CONFLICT = "test_life_conflict.py::test_"
DRAIN = "test_life_drain.py::test_"
PRESSURE = "test_life_backpressure.py::test_"
FAILURE = "test_life_failure.py::test_"
END = "test_life_end.py::test_"
SHUTDOWN = "test_life_shutdown.py::test_"
LEAKS = "test_life_leaks.py::test_"
MACHINE = "test_life_machine.py::test_"
SERVERS = "test_shutdown.py::test_"
QUIET = "test_quiet.py::test_"
DEPARTURE = "test_departure.py::test_"

PROMISES: list[tuple[str, str, list[str]]] = [
    # -- §2 -------------------------------------------------------------------------------------------------------
    (
        "2",
        "in-process, nothing else to run",
        [SETTINGS + "every_setting_is_a_keyword_with_a_working_default"],
    ),
    ("2", "replay, lookup, stop; documented in /docs", [SETTINGS + "the_router_is_documented"]),
    (
        "2",
        "# decorator ...",
        [
            MATRIX + "a_stream_is_recorded_whole_and_replayed_as_it_was",
            MATRIX + "the_faces_answer_with_the_headers_of_a_resumable_response",
            MATRIX + "every_event_of_every_face_carries_a_resume_position",
            MATRIX + "decorator_and_dependency_together_record_once",
            REQUEST + "a_handle_that_is_not_used_leaves_the_answer_alone",
            REQUEST + "without_its_router_a_stream_works_and_names_no_way_back",
            REQUEST + "anything_that_fastapi_takes_for_an_endpoint_can_be_decorated",
        ],
    ),
    (
        "2",
        (
            "Third form, for an app whose endpoints the user does not own (LiteLLM, llama-cpp-python, a mounted "
            "Starlette app): `app.add_middleware(ResumableMiddleware, resumable=resumable, "
            'paths=["/v1/chat/completions"])`.'
        ),
        [
            MATRIX + "a_stream_is_recorded_whole_and_replayed_as_it_was",
            REQUEST + "the_middleware_passes_bodies_in_several_messages",
            REQUEST + "a_client_that_leaves_in_mid_upload_aborts_the_request",
            REQUEST + "a_client_that_leaves_in_mid_upload_never_runs_the_endpoint",
            REQUEST + "the_middleware_leaves_other_paths_alone",
            REQUEST + "the_middleware_works_over_an_app_without_fastapi",
            REQUEST + "websockets_and_lifespans_pass_through_the_middleware",
        ],
    ),
    (
        "2",
        "All of these (and the route class below) are thin faces of ONE mechanism",
        [
            MATRIX + "all_faces_share_one_set_of_streams",
            MATRIX + "a_failure_in_mid_stream_ends_every_reader_alike",
            REQUEST + "the_endpoint_gets_its_body_whole_in_several_messages",
        ],
    ),
    (
        "2",
        (
            "The core runs an ASGI app in a background task that it owns, records what the app sends in a log, "
            "and serves the log to the caller."
        ),
        [
            MATRIX + "the_producer_goes_on_when_the_client_has_left",
            MATRIX + "concurrent_streams_do_not_mix",
            REQUEST + "a_plain_json_answer_under_a_stream_id_is_recorded_too",
        ],
    ),
    (
        "2",
        "`StreamingResponse` (async and sync generators), `sse_starlette.EventSourceResponse`",
        [
            MATRIX + "a_stream_is_recorded_whole_and_replayed_as_it_was",
            MATRIX + "the_producer_goes_on_when_the_client_has_left",
            MATRIX + "a_stop_runs_the_finally_blocks",
            MATRIX + "an_exception_on_the_first_item_reaches_the_apps_own_handlers",
        ],
    ),
    (
        "2",
        "`def` and `async def` endpoints",
        [
            MATRIX + "a_stream_is_recorded_whole_and_replayed_as_it_was",
            REQUEST + "an_endpoint_that_returns_a_plain_value_keeps_fastapis_serialisation",
        ],
    ),
    (
        "2",
        "dependencies with `yield`",
        [
            REQUEST + "a_dependency_with_yield_stays_open_until_the_generator_is_done",
            REQUEST + "a_dependency_sees_the_generators_exception",
            REQUEST + "dependencies_close_in_reverse_order_and_once",
        ],
    ),
    (
        "2",
        "`BackgroundTasks`",
        [
            REQUEST + "a_dependency_with_yield_stays_open_until_the_generator_is_done",
            REQUEST + "a_background_task_of_the_response_runs_after_the_stream",
            REQUEST + "a_slow_background_task_does_not_hold_the_end_of_the_response",
            REQUEST + "a_background_task_that_fails_does_not_undo_a_whole_answer",
        ],
    ),
    (
        "2",
        "`BaseHTTPMiddleware`",
        [
            REQUEST + "a_base_http_middleware_is_no_obstacle",
            REQUEST + "a_base_http_middleware_inside_the_resumable_one_is_no_obstacle",
        ],
    ),
    (
        "2",
        "GZip middleware",
        [
            REQUEST + "gzip_middleware_does_not_hold_an_event_stream_back",
            REQUEST + "gzip_inside_the_recorded_app_is_recorded_uncompressed",
        ],
    ),
    (
        "2",
        "mounted sub-apps, routers with prefixes",
        [REQUEST + "a_mounted_sub_app_works", REQUEST + "a_router_with_a_prefix_works"],
    ),
    (
        "2",
        "`TestClient`",
        [
            REQUEST + "the_test_client_works_without_with",
            REQUEST + "the_test_client_works_with_with",
            REQUEST + "uploads_through_the_test_client_work",
        ],
    ),
    (
        "2",
        (
            "`APIRouter(route_class=resumable.route_class)` makes every endpoint of that router resumable, "
            "`yield` ones included."
        ),
        [
            MATRIX + "a_stream_is_recorded_whole_and_replayed_as_it_was",
            MATRIX + "a_stop_runs_the_finally_blocks",
            MATRIX + "an_exception_on_the_first_item_reaches_the_apps_own_handlers",
        ],
    ),
    (
        "2",
        (
            "`@resumable.stream` on a `yield` endpoint works too, or, if that can't be made robust over the "
            "supported FastAPI range, fails at decoration time with a sentence that names the route class."
        ),
        [MATRIX + "the_decorator_on_a_yield_endpoint_says_what_to_use"],
    ),
    (
        "2",
        "The endpoint's entry in OpenAPI does not change in any of these.",
        [MATRIX + "the_endpoints_entry_in_openapi_is_that_of_the_plain_app"],
    ),
    (
        "2",
        "The request has to stay alive, from its own point of view, until its producer is done.",
        [
            REQUEST + "a_dependency_with_yield_stays_open_until_the_generator_is_done",
            REQUEST + "a_dependency_outlives_the_cancellation_of_the_servers_task",
            DRAIN + "the_app_never_sees_the_disconnect",
        ],
    ),
    (
        "2",
        ("Uploaded files hang on FastAPI's app-level exit stack, so it is the whole request, not only the route."),
        [REQUEST + "an_uploaded_file_is_readable_until_the_end", REQUEST + "uploads_through_the_test_client_work"],
    ),
    (
        "2",
        (
            "Names of public pydantic models start with `Resumable`, so that no schema of the user's is renamed "
            "in OpenAPI."
        ),
        [
            SETTINGS + "public_models_start_with_resumable",
            SETTINGS + "a_users_own_models_keep_their_names",
        ],
    ),
    (
        "2",
        "`Resumable(...)` takes keywords only, each with a working default",
        [
            SETTINGS + "every_setting_is_a_keyword_with_a_working_default",
            SETTINGS + "settings_are_keywords_only",
            SETTINGS + "an_unknown_setting_is_refused_by_name",
            SETTINGS + "an_empty_prefix_is_allowed",
            SETTINGS + "several_resumables_live_side_by_side",
        ],
    ),
    (
        "2",
        (
            "`stream_id` (how a request names its stream: by default the header `X-Conversation-Id`; any FastAPI "
            "dependency that returns `str | None`, e.g. from a path, a query, a JSON body's `id`)"
        ),
        [
            SETTINGS + "the_default_name_is_the_conversation_header",
            SETTINGS + "another_header_can_name_the_stream",
            SETTINGS + "a_field_of_the_json_body_can_name_the_stream",
            SETTINGS + "a_body_without_the_field_names_no_stream",
            SETTINGS + "the_endpoint_still_reads_the_body_that_named_the_stream",
            SETTINGS + "a_path_parameter_can_name_the_stream",
            SETTINGS + "a_query_parameter_can_name_the_stream",
            SETTINGS + "a_dependency_that_returns_none_names_no_stream",
            SETTINGS + "the_naming_dependency_may_have_dependencies_and_yield",
            SETTINGS + "dependency_overrides_reach_the_name_and_the_owner",
        ],
    ),
    (
        "2",
        (
            "`owner` (any FastAPI dependency that returns `str | None`: streams are keyed by owner and id, and a "
            "foreign owner's stream does not exist)"
        ),
        [
            SETTINGS + "a_foreign_owners_stream_does_not_exist",
            SETTINGS + "two_owners_may_use_the_same_id",
            SETTINGS + "an_owner_dependency_may_refuse",
            SETTINGS + "dependency_overrides_reach_the_name_and_the_owner",
            START + "the_owner_is_checked_on_a_resume_at_the_endpoint",
        ],
    ),
    (
        "2",
        "`max_total_bytes`, `max_streams`, `max_streams_per_owner`",
        [
            END + "the_server_takes_no_more_than_max_streams",
            END + "an_owner_has_no_more_than_max_streams_per_owner",
            END + "queued_streams_count_against_the_limits",
            END + "a_replacement_needs_no_second_place",
            END + "attaching_and_replaying_need_no_place",
            END + "finished_streams_make_room_oldest_first",
            END + "a_full_server_refuses_the_new_and_never_kills_the_old",
            END + "runs_are_counted_once",
        ],
    ),
    ("2", "`auto_id=False`", [SETTINGS + "a_client_can_let_the_server_choose_the_id"]),
    (
        "2",
        (
            "Also settable from the environment (`FASTAPI_RESUMABLE_*`, pydantic-settings) so that an operator "
            "need not touch code."
        ),
        [
            SETTINGS + "the_environment_sets_what_code_leaves_open",
            SETTINGS + "code_wins_over_the_environment",
            SETTINGS + "behaviour_follows_the_environment",
        ],
    ),
    (
        "2",
        "Wrong values fail at construction with a sentence that says what to do.",
        [
            SETTINGS + "a_wrong_value_fails_at_construction_with_a_sentence",
            SETTINGS + "a_wrong_value_in_the_environment_fails_at_construction_too",
        ],
    ),
    # -- §5 -------------------------------------------------------------------------------------------------------
    (
        "5",
        "No stream id on the request: the endpoint behaves as if we were not installed.",
        [
            MATRIX + "without_a_stream_id_the_answer_is_byte_for_byte_the_plain_one",
            MATRIX + "without_a_stream_id_a_client_that_leaves_ends_the_generator",
            START + "a_blank_id_is_no_id",
            START + "without_a_stream_id_a_last_event_id_is_the_apps_own_business",
        ],
    ),
    (
        "5",
        (
            "The id is reserved when the request comes in (`queued`), and the stream begins when the app sends a "
            "2xx response."
        ),
        [
            START + "an_id_is_reserved_before_the_endpoint_answers",
            START + "a_replay_of_a_queued_stream_waits_for_its_beginning",
            START + "many_starts_of_one_id_in_a_row_each_begin_an_epoch",
            START + "a_stream_that_yields_nothing_is_an_empty_success",
        ],
    ),
    (
        "5",
        (
            "A non-2xx response (401, 422, 500, an exception before the first byte) passes through unrecorded "
            "with its own status and body, and an earlier stream on that id, live or finished, stays as it was: "
            "whatever the rule, it is only touched when the new one begins."
        ),
        [
            START + "an_answer_that_is_no_success_passes_through_unrecorded",
            START + "a_failed_start_leaves_a_finished_stream_as_it_was",
            START + "a_failed_start_leaves_a_live_stream_as_it_was",
            START + "a_first_item_that_fails_leaves_an_earlier_stream_as_it_was",
            CONFLICT + "replace_leaves_the_old_stream_alone_until_the_new_one_begins",
        ],
    ),
    (
        "5",
        (
            "The response's head is held until its first bytes come (at most `head_timeout`, 1 s), so a generator"
            " that raises on its first item gives the client a real 500 (or the HTTPException's own status, "
            "through the app's own exception handlers), not a 200 with an error inside."
        ),
        [
            START + "the_head_is_held_until_the_first_bytes_come",
            START + "the_head_is_held_no_longer_than_head_timeout",
            START + "a_failure_after_the_head_timeout_is_a_failure_in_mid_stream",
            START + "an_http_exception_on_the_first_item_keeps_its_own_status",
            START + "an_unhandled_exception_on_the_first_item_is_a_500",
            MATRIX + "an_exception_on_the_first_item_reaches_the_apps_own_handlers",
            MATRIX + "an_exception_on_the_first_item_is_a_real_error_under_the_middleware",
        ],
    ),
    (
        "5",
        (
            "A request that names a stream and carries `Last-Event-ID` is a resume, by the rules of the replay "
            "route (its errors and its 204 included), and never runs the endpoint: a native `EventSource` on a "
            "resumable GET endpoint comes back to that very URL."
        ),
        [
            START + "an_event_source_that_comes_back_to_the_endpoint_resumes",
            START + "a_resume_at_the_endpoint_ends_with_204_when_nothing_is_left",
            START + "a_resume_at_the_endpoint_has_the_errors_of_the_replay_route",
            START + "a_resume_at_the_endpoint_passes_the_endpoints_auth",
            START + "the_dependencies_of_the_route_run_before_the_handle",
            START + "a_resume_at_the_endpoint_is_no_failure_for_its_dependencies",
            START + "an_empty_last_event_id_is_no_resume",
            START + "a_post_may_resume_too",
        ],
    ),
    (
        "5",
        "`replace` stops the old one (its readers get `event: cancelled`, code `replaced`) and begins a new epoch",
        [
            CONFLICT + "replace_stops_the_old_stream_and_begins_a_new_epoch",
            CONFLICT + "replace_leaves_the_old_stream_alone_until_the_new_one_begins",
        ],
    ),
    (
        "5",
        (
            "`attach` does not run the endpoint again: the caller follows the running stream from the start (an "
            "idempotent retry of a POST never pays twice)"
        ),
        [
            CONFLICT + "attach_follows_the_running_stream_from_its_start",
            CONFLICT + "attach_to_a_finished_stream_begins_a_new_one",
            CONFLICT + "a_waiter_gets_its_turn_when_the_first_request_fails",
            CONFLICT + "an_attached_client_that_leaves_takes_nothing_with_it",
        ],
    ),
    ("5", "`reject` answers 409", [CONFLICT + "reject_answers_409_and_touches_nothing"]),
    (
        "5",
        "Two POSTs at the same instant obey the same rule, on one worker and across workers.",
        [
            CONFLICT + "two_posts_at_once_under_replace_leave_one_stream",
            CONFLICT + "two_posts_at_once_under_attach_run_the_endpoint_once",
            CONFLICT + "two_posts_at_once_under_reject_let_one_through",
            CONFLICT + "a_hundred_posts_at_once_leave_one_stream",
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
            CONFLICT + "a_repeated_key_attaches_to_the_running_stream",
            CONFLICT + "a_repeated_key_replays_the_finished_stream",
            CONFLICT + "a_repeated_key_replays_a_failed_stream",
            CONFLICT + "another_key_is_another_request",
            CONFLICT + "no_key_never_repeats_a_stream_without_one",
            CONFLICT + "two_posts_at_once_with_one_key_run_the_endpoint_once",
            CONFLICT + "a_key_does_not_outlive_a_stop",
        ],
    ),
    ("5", "Replay routes never start work.", [CONFLICT + "replay_routes_never_start_work"]),
    (
        "5",
        "When the client goes away, nothing happens to the producer.",
        [
            MATRIX + "the_producer_goes_on_when_the_client_has_left",
            DRAIN + "a_client_that_leaves_before_the_stream_begins_changes_nothing",
            DRAIN + "the_servers_cancellation_does_not_reach_the_producer",
            DRAIN + "a_readers_departure_or_cancellation_never_touches_the_producer",
            DEPARTURE + "a_client_that_leaves_is_no_shutdown",
        ],
    ),
    ("5", "The app never sees the disconnect.", [DRAIN + "the_app_never_sees_the_disconnect"]),
    (
        "5",
        (
            "Request-scoped resources (dependencies with `yield`, `BackgroundTasks`, uploaded files, context "
            "variables) stay alive until the producer has finished, then are closed once, in order."
        ),
        [
            REQUEST + "a_dependency_with_yield_stays_open_until_the_generator_is_done",
            REQUEST + "a_dependency_outlives_the_cancellation_of_the_servers_task",
            REQUEST + "dependencies_close_in_reverse_order_and_once",
            REQUEST + "a_background_task_of_the_response_runs_after_the_stream",
            REQUEST + "an_uploaded_file_is_readable_until_the_end",
            REQUEST + "context_variables_last_as_long_as_the_producer",
            DRAIN + "a_stop_closes_dependencies_after_the_generator",
            DRAIN + "a_stop_of_a_queued_stream_closes_its_dependencies",
        ],
    ),
    (
        "5",
        (
            "While somebody is reading, a producer may run ahead of the slowest *attached* reader by at most the "
            "log's bound, then waits, so that nothing an attached reader still needs is dropped"
        ),
        [
            PRESSURE + "a_producer_waits_for_its_only_reader_at_the_bound",
            PRESSURE + "a_producer_waits_for_the_slowest_of_its_readers",
            PRESSURE + "a_producer_waits_at_the_bound_in_an_event_stream_too",
            PRESSURE + "a_reader_that_leaves_is_no_longer_waited_for",
            PRESSURE + "a_chunk_of_100_mb_passes_through_a_log_of_4_mib",
            PRESSURE + "a_reader_that_comes_late_starts_at_the_oldest_byte_and_reads_to_the_end",
        ],
    ),
    (
        "5",
        ("a reader that makes no progress for `stall_timeout` is let go (and other readers no longer wait for it)"),
        [
            PRESSURE + "a_stalled_reader_is_let_go_and_never_sees_a_clean_end",
            PRESSURE + "a_reader_that_does_not_even_take_the_head_is_let_go",
            PRESSURE + "other_readers_do_not_wait_for_a_stalled_one_that_was_let_go",
            PRESSURE + "a_slow_reader_that_makes_progress_is_not_let_go",
        ],
    ),
    (
        "5",
        "A client's socket never holds the drain up longer than that.",
        [
            PRESSURE + "a_stalled_reader_is_let_go_and_never_sees_a_clean_end",
            PRESSURE + "a_stalled_first_reader_does_not_hold_the_end_up",
        ],
    ),
    (
        "5",
        (
            "Should a reader all the same lose its place in mid-read, its response ends with `event: error`, code"
            " `offset_lost`: never a silent gap, never a clean end."
        ),
        [
            PRESSURE + "a_stalled_reader_of_an_event_stream_is_told_of_its_loss",
            PRESSURE + "a_stalled_reader_is_let_go_and_never_sees_a_clean_end",
        ],
    ),
    (
        "5",
        "With no reader attached the producer runs free and the log keeps the newest `max_stream_bytes`.",
        [PRESSURE + "with_no_reader_the_producer_runs_free_and_the_newest_bytes_are_kept"],
    ),
    (
        "5",
        "A million-event generator costs bounded memory in every case.",
        [
            PRESSURE + "a_million_events_cost_bounded_memory",
            PRESSURE + "an_event_that_never_ends_is_bounded",
            LEAKS + "a_thousand_streams_of_every_fate_leave_nothing_behind",
            LEAKS + "readers_that_come_and_go_leave_nothing_behind",
            LEAKS + "a_request_is_freed_as_soon_as_it_is_over",
        ],
    ),
    (
        "5",
        (
            "`DELETE` makes the app see what it would see if its client had left (`http.disconnect`, then "
            "cancellation), so `finally` blocks and cancel scopes run."
        ),
        [
            DRAIN + "a_stop_is_a_disconnect_first_and_then_a_cancellation",
            DRAIN + "the_app_sees_a_disconnect_on_stop",
            DRAIN + "cancel_scopes_of_the_app_run_on_stop",
            MATRIX + "a_stop_runs_the_finally_blocks",
        ],
    ),
    (
        "5",
        (
            "Readers get the terminal event at once, the stream is gone (404 afterwards), and a producer that "
            "ignores cancellation for `stop_grace` is abandoned with a warning."
        ),
        [
            DRAIN + "a_stop_reaches_every_reader_at_once",
            DEPARTURE + "a_stop_over_the_network_reaches_every_reader",
            DRAIN + "a_stop_does_not_wait_for_the_producer",
            DRAIN + "a_stopped_stream_is_gone",
            DRAIN + "a_stop_of_a_finished_stream_forgets_it",
            DRAIN + "stopping_twice_at_once_is_as_good_as_once",
            DRAIN + "stopping_one_stream_leaves_its_neighbours_alone",
            DRAIN + "events_read_before_a_stop_are_whole",
            DRAIN + "a_producer_that_ignores_cancellation_is_abandoned_with_a_warning",
            DRAIN + "what_an_abandoned_producer_still_sends_goes_nowhere",
        ],
    ),
    (
        "5",
        "Code inside the endpoint can also ask: `stream.stopped` (for sync generators in threads).",
        [
            DRAIN + "a_sync_generator_can_ask_whether_it_was_stopped",
            DRAIN + "stream_stopped_is_false_until_a_stop_and_without_a_stream",
        ],
    ),
    (
        "5",
        "`?epoch=` on the DELETE makes it a no-op for any other epoch, so a late click cannot kill the next answer.",
        [DRAIN + "a_late_click_cannot_stop_the_next_answer"],
    ),
    (
        "5",
        "A stop while the stream is still `queued` cancels the waiting request.",
        [
            DRAIN + "a_stop_of_a_queued_stream_cancels_the_waiting_request",
            DRAIN + "a_stop_while_the_head_is_held_cancels_the_waiting_request",
            DRAIN + "a_stop_of_a_queued_stream_reaches_those_who_wait_with_it",
            DRAIN + "a_stop_of_a_queued_stream_closes_its_dependencies",
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
            FAILURE + "the_default_terminal_event_names_code_and_message",
            FAILURE + "the_terminal_event_is_in_the_log",
            FAILURE + "the_exceptions_text_is_logged_and_not_sent",
            FAILURE + "an_app_that_returns_without_ending_its_response_has_failed",
            FAILURE + "a_cancellation_of_the_apps_own_making_is_a_failure",
            FAILURE + "a_completed_stream_has_no_terminal_event_of_ours",
            MATRIX + "a_failure_in_mid_stream_ends_every_reader_alike",
        ],
    ),
    (
        "5",
        "Stop ends with `event: cancelled` and the same shape",
        [
            FAILURE + "the_default_terminal_event_names_code_and_message",
            DRAIN + "a_stop_reaches_every_reader_at_once",
        ],
    ),
    (
        "5",
        (
            '`terminal_event` chooses another form for all of them: `"openai"` (an unnamed `data:` frame), `"ai-'
            'sdk"` (its `error`/`abort` parts and `[DONE]`), or a function of status, code and message to bytes '
            "or None."
        ),
        [
            FAILURE + "the_openai_form_is_an_unnamed_frame",
            FAILURE + "the_ai_sdk_form_is_its_own_parts",
            FAILURE + "a_function_writes_its_own_terminal_event",
            FAILURE + "a_function_may_write_nothing",
            FAILURE + "a_function_that_fails_does_not_keep_a_stream_from_ending",
        ],
    ),
    (
        "5",
        "Non-SSE media types end by closing the connection uncleanly, so a client can tell.",
        [
            FAILURE + "other_media_types_end_by_an_unclean_close",
            DRAIN + "a_stop_ends_other_media_types_uncleanly",
            QUIET + "a_stop_of_a_stream_without_events_breaks_off_quietly",
            SERVERS + "behind_a_base_http_middleware_readers_are_told_in_time",
            SERVERS + "a_worker_that_recycles_itself_interrupts_what_is_live",
            SERVERS + "other_media_types_break_off_at_the_end_of_the_grace",
        ],
    ),
    (
        "5",
        "A shutdown past the grace ends with `event: error`, code `interrupted`.",
        [
            SHUTDOWN + "a_stream_past_the_grace_is_interrupted",
            SERVERS + "streams_past_the_grace_are_interrupted",
            SERVERS + "a_response_that_ends_itself_at_the_exit_is_interrupted",
            FAILURE + "the_default_terminal_event_names_code_and_message",
        ],
    ),
    (
        "5",
        "**Retention** never counts while a stream is live, however silent it is.",
        [END + "retention_never_counts_while_a_stream_is_live", END + "a_queued_stream_does_not_expire"],
    ),
    (
        "5",
        "The terminal state is part of the log, not a message that can be missed.",
        [END + "the_terminal_state_is_part_of_the_log", END + "a_stream_that_failed_stays_for_the_retention_too"],
    ),
    (
        "5",
        "A finished stream stays for `retention`; then 404.",
        [
            END + "a_finished_stream_stays_for_the_retention_and_then_is_gone",
            END + "a_stream_expires_without_anybody_asking",
            END + "a_reader_in_mid_replay_is_not_cut_off_by_expiry",
            END + "an_expired_id_can_be_used_again",
            MACHINE + "any_order_of_events_agrees_with_the_model",
        ],
    ),
    (
        "5",
        (
            "`@resumable.on_finish` gets the finished record (id, owner, epoch, status, times, headers, an "
            "iterator over the bytes or the events, whether the head was dropped) to persist the answer; it runs "
            "off the hot path; its failure is logged and harmless."
        ),
        [
            END + "on_finish_hears_of_every_fate",
            END + "a_finished_record_has_its_events",
            END + "a_finished_record_tells_when_its_head_was_dropped",
            END + "on_finish_is_not_told_of_what_never_began",
            END + "a_hook_that_fails_is_logged_and_harmless",
            END + "a_hook_may_be_a_plain_function",
            END + "on_finish_gives_the_function_back",
            END + "a_slow_hook_holds_nobody_up",
            END + "a_hook_runs_after_the_log_has_ended",
        ],
    ),
    (
        "5",
        "On SIGTERM new streams are refused (503)",
        [
            SHUTDOWN + "new_streams_are_refused_during_a_shutdown",
            SHUTDOWN + "finished_streams_can_be_replayed_during_a_shutdown",
            SHUTDOWN + "a_queued_request_is_answered_by_the_shutdown",
            SERVERS + "new_streams_are_refused_once_the_server_shuts_down",
        ],
    ),
    (
        "5",
        "live ones get `shutdown_grace` to finish, then are `interrupted` with a terminal event; readers end",
        [
            SHUTDOWN + "live_streams_may_finish_within_the_grace",
            SHUTDOWN + "a_stream_nobody_reads_may_finish_within_the_grace",
            SHUTDOWN + "a_stream_past_the_grace_is_interrupted",
            SHUTDOWN + "the_apps_own_lifespan_shuts_the_streams_down",
            SHUTDOWN + "shutting_down_twice_is_as_good_as_once",
            SHUTDOWN + "on_finish_hooks_are_awaited_by_the_shutdown",
            SERVERS + "live_streams_finish_within_the_grace",
            SERVERS + "a_stream_nobody_reads_finishes_within_the_grace",
            SERVERS + "streams_past_the_grace_are_interrupted",
            SERVERS + "a_stream_nobody_reads_is_interrupted_past_the_grace",
        ],
    ),
    (
        "5",
        "the process exits in time, under uvicorn with and without `--timeout-graceful-shutdown`.",
        [
            SERVERS + "uvicorns_own_timeout_before_our_grace_interrupts",
            SERVERS + "an_idle_server_exits_at_once",
            SERVERS + "a_producer_that_cannot_be_cancelled_does_not_keep_the_process",
            SERVERS + "a_server_that_gives_no_signal_is_let_go_in_time",
            SERVERS + "the_log_of_the_server_shows_no_traceback",
            SHUTDOWN + "a_producer_that_ignores_its_cancellation_does_not_hold_the_shutdown_up",
        ],
    ),
    (
        "5",
        "No reader ever hangs.",
        [
            SERVERS + "a_reader_that_takes_nothing_does_not_keep_the_process",
            LEAKS + "nothing_runs_after_the_lifespan_has_ended",
            MACHINE + "any_order_of_events_agrees_with_the_model",
        ],
    ),
    # -- §9, where it speaks of the life of a stream ----------------------------------------------------------------
    (
        "9",
        "No per-event task, lock, timer or copy that a measurement has not justified. Idle streams cost no CPU.",
        [
            LEAKS + "idle_streams_cost_no_cpu",
            LEAKS + "timers_are_one_per_stream_and_one_per_reader_at_most",
            LEAKS + "an_event_costs_one_wake_up_per_reader",
        ],
    ),
]
