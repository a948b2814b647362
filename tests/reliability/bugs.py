"""★ Small mistakes in the service and the client, one place each, and the test that catches each. For `seeded_bugs`.

`python -m tests.reliability.bugs` writes their table into docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.machine import ROOT
from benchmarks.results import with_table

PAGE = ROOT / "docs" / "reliability.md"
_SERVICE = "services/preceptor_service"
_CLIENT = "clients/python/preceptor"


@dataclass(frozen=True)
class Bug:
    """A mistake.

    Attributes:
        name: what it does.
        promise: what it breaks.
        file: where it is, from the root of the checkout.
        old: text that stands there exactly once.
        new: what stands there instead.
        test: pytest's name of the test that catches it.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    test: str


BUGS = (
    Bug(
        "skips the digest check of a push",
        "weights are what was pushed",
        f"{_SERVICE}/weight_staging.py",
        "if self._sha256.digest() != sha256:",
        "if False:",
        "tests/weight_store/test_weight_store.py::TestStaging::test_another_checksum[directory]",
    ),
    Bug(
        "skips the digest check of what is loaded",
        "weights are what was pushed",
        f"{_SERVICE}/storage/directory.py",
        'if digest != f"sha256:{found}":',
        "if False:",
        "tests/weight_store/test_weight_store.py::TestDamage::test_a_damaged_blob_is_named_and_healed_by_pushing_again",
    ),
    Bug(
        "takes NaN for a weight",
        "weights are what was pushed",
        f"{_SERVICE}/models/manifest.py",
        "if tensor.is_floating_point():\n            count",
        "if False:\n            count",
        "tests/models/test_manifest.py::test_a_misfit_is_named",
    ),
    Bug(
        "publishes before fsync",
        "a push is there or not",
        f"{_SERVICE}/weight_staging.py",
        "            os.fsync(self._file.fileno())\n            self._file.close()",
        "            self._file.close()",
        "tests/reliability/test_atomic_push.py::"
        "test_a_push_that_dies_anywhere_leaves_the_old_version_or_all_of_the_new_one[power failure]",
    ),
    Bug(
        "answers before the name is durable",
        "a push is there or not",
        f"{_SERVICE}/storage/directory.py",
        '            sync_directory(path.parent)\n            reached("manifest-durable")',
        '            reached("manifest-durable")',
        "tests/reliability/test_atomic_push.py::"
        "test_a_push_that_dies_anywhere_leaves_the_old_version_or_all_of_the_new_one[power failure]",
    ),
    Bug(
        "names trained weights that are not there",
        "a push is there or not",
        f"{_SERVICE}/weight_store.py",
        "                for digest in version.digests:\n                    self.require(digest)\n",
        "",
        "tests/weight_store/test_weight_store.py::TestTrained::test_blobs_that_are_gone_are_not_committed[directory]",
    ),
    Bug(
        "lets two pushes win",
        "writers are serialised",
        f"{_SERVICE}/weight_store.py",
        'if role == "learner" and newest != base_version:',
        "if False:",
        "tests/weight_store/test_weight_store.py::TestCommit::"
        "test_a_push_that_began_before_another_was_committed_is_a_conflict[directory]",
    ),
    Bug(
        "takes an older step unasked",
        "writers are serialised",
        f"{_SERVICE}/weight_store.py",
        'if role == "learner" and kept and step < kept[-1].step and not rewind:',
        "if False:",
        "tests/weight_store/test_weight_store.py::TestRewind::test_an_older_step_is_refused[directory]",
    ),
    Bug(
        "removes a version that super-batches are pinned to",
        "pinned versions are kept",
        f"{_SERVICE}/weight_collection.py",
        "if storage.modified_s(manifest_path(folder, successor)) < now - grace_s:",
        "if True:",
        "tests/weight_store/test_collect.py::test_expired_versions_leave_a_trace_for_the_grace_period[directory]",
    ),
    Bug(
        "names the newest version, whichever scored",
        "one version per super-batch",
        f"{_SERVICE}/pipeline.py",
        "return Selected(indices, scores, weights, pinned, None, non_finite, super_batch.example_id, stages)",
        "pinned = replace(pinned, learner=run.learner)\n"
        "        return Selected(indices, scores, weights, pinned, None, non_finite, super_batch.example_id, stages)",
        "tests/service/test_pushes.py::test_a_super_batch_under_way_keeps_its_version_whatever_is_pushed",
    ),
    Bug(
        "repeats an answer of an older version",
        "versions never go back",
        f"{_SERVICE}/gateway/answer_cache.py",
        'if answer.HasField("learner_version") and answer.learner_version < observed_version:',
        "if False:",
        "tests/service/test_streams.py::test_a_repeated_step_never_takes_a_trainer_back_to_an_older_version",
    ),
    Bug(
        "forgets what it answered",
        "a repeated step has the same answer",
        f"{_SERVICE}/gateway/answer_cache.py",
        "found = self._answers.get(key)\n",
        "found = None\n",
        "tests/service/test_streams.py::"
        "test_a_repeated_step_keeps_its_answer_for_a_trainer_that_has_seen_nothing_later",
    ),
    Bug(
        "takes one step for two super-batches",
        "other candidates are refused (ALREADY_EXISTS)",
        f"{_SERVICE}/gateway/answer_cache.py",
        "if used is not None and used[0] != identity:",
        "if False:",
        "tests/service/test_bad_super_batches.py::test_the_same_step_with_other_candidates_is_refused",
    ),
    Bug(
        "counts a checkpoint one step short",
        "a restarted training selects the same",
        f"{_CLIENT}/torch.py",
        "self._step = offered.step + 1",
        "self._step = offered.step",
        "tests/client/test_selecting_loader.py::test_a_resumed_loader_yields_what_the_uninterrupted_one_would_have",
    ),
    Bug(
        "takes the answer to the first question",
        "late answers are dropped",
        f"{_CLIENT}/stream.py",
        'attempt.end(RpcFailure(UnavailableError(f"{offer.key} was asked anew, otherwise"), is_transport=True))',
        "pass",
        "tests/client/test_select_stream.py::"
        "test_repeating_a_step_otherwise_never_takes_the_answer_to_the_first_question",
    ),
    Bug(
        "goes on waiting for scorers that were given up",
        "late answers are dropped",
        f"{_SERVICE}/scoring/hedging.py",
        "                attempt.cancel()\n",
        "",
        "tests/scoring/test_hedging.py::test_giving_up_gives_up_every_attempt",
    ),
    Bug(
        "never asks a second scorer",
        "a scorer that hangs is not waited for",
        f"{_SERVICE}/scoring/hedging.py",
        "if not done and self._left >= 1:",
        "if False:",
        "tests/scoring/test_hedging.py::test_a_scorer_that_hangs_is_not_waited_for",
    ),
    Bug(
        "hides a fallback",
        "a fallback is marked",
        f"{_SERVICE}/pipeline.py",
        "return _drawn_uniformly(run, pinned, super_batch, draw, stages, fallback=reason)",
        "return _drawn_uniformly(run, pinned, super_batch, draw, stages)",
        "tests/pipeline/test_lost_scorers.py::test_they_fall_back_where_the_run_says_so",
    ),
    Bug(
        "draws for itself otherwise than a gateway",
        "a trainer never stalls",
        f"{_CLIENT}/fallback.py",
        "np.argsort(-noise",
        "np.argsort(noise",
        "tests/client/test_own_fallback.py::test_where_a_gateway_hangs_the_client_draws_what_the_gateway_would",
    ),
    Bug(
        "drops a credit",
        "a stream never stalls",
        f"{_SERVICE}/gateway/select_stream.py",
        "await self._give_credit(context, pending.body_bytes)",
        "self._unanswered_bytes -= pending.body_bytes",
        "tests/service/test_bad_streams.py::test_the_whole_window_may_be_used_and_comes_back",
    ),
    Bug(
        "lets a trainer send beyond its window",
        "memory is bounded in bytes",
        f"{_SERVICE}/gateway/select_stream.py",
        "if self._unanswered_bytes > self._config.window_bytes:",
        "if False:",
        "tests/service/test_bad_streams.py::test_sending_beyond_the_credit_ends_the_stream",
    ),
    Bug(
        "keeps the bytes of a waiter that was cancelled",
        "memory is bounded in bytes",
        f"{_SERVICE}/byte_budget.py",
        "if turn.done() and not turn.cancelled():\n                self.release(count, holder)\n",
        "if turn.done() and not turn.cancelled():\n                pass\n",
        "tests/pipeline/test_byte_budget.py::test_a_waiter_cancelled_in_the_tick_of_its_turn_holds_nothing",
    ),
    Bug(
        "waits for the rest of a body for ever",
        "what a silent trainer holds is freed",
        f"{_SERVICE}/gateway/select_stream.py",
        "return await next_message(requests, self._config.silence_s)",
        "return await anext(requests)",
        "tests/service/test_silent_trainers.py::test_a_body_that_stops_on_a_living_connection_gives_its_room_to_others",
    ),
    Bug(
        "asks whether a trainer is there, and waits a minute for the answer",
        "what a silent trainer holds is freed",
        f"{_SERVICE}/gateway/server.py",
        '("grpc.http2.ping_timeout_ms", answer_ms),',
        "",
        "tests/service/test_silent_trainers.py::"
        "test_streams_of_a_half_open_trainer_are_freed_wherever_they_are[vanish]",
    ),
    Bug(
        "takes chunks in any order",
        "bodies are what was sent",
        f"{_SERVICE}/gateway/body.py",
        "if chunk.offset != self.received_bytes:",
        "if False:",
        "tests/service/test_bad_streams.py::test_a_stream_that_breaks_the_order_ends",
    ),
    Bug(
        "serves who came first, however much it holds",
        "admission is fair between runs",
        f"{_SERVICE}/byte_budget.py",
        "sorted(self._waiting, key=lambda holder: self._held_by[holder])",
        "list(self._waiting)",
        "tests/pipeline/test_byte_budget.py::test_whoever_holds_least_is_next",
    ),
    Bug(
        "earns a repeat by every super-batch",
        "repeats stay within a budget",
        f"{_CLIENT}/retry_budget.py",
        "self._left = min(_RESERVE, self._left + _SHARE)",
        "self._left = _RESERVE",
        "tests/client/test_refusals.py::"
        "test_the_budget_is_one_for_twenty_and_one_more_and_one_where_all_stood_for_ten_seconds",
    ),
    Bug(
        "opens an rpc that nobody thought of",
        "denied by default",
        f"{_SERVICE}/gateway/guard.py",
        'raise PermissionDeniedError(f"{method.name} is not open to anybody; it has no rule")',
        'rule = Rule(None, lambda _: "")',
        "tests/access/test_guard.py::test_an_rpc_without_a_rule_is_denied_even_where_nobody_has_to_say_who_they_are",
    ),
    Bug(
        "asks who, and never again whether",
        "rights are checked again on open streams",
        f"{_SERVICE}/gateway/guard.py",
        'connect again")\n        await self._check_role()',
        'connect again")',
        "tests/access/test_open_streams.py::test_a_stream_is_cut_when_its_caller_loses_its_right",
    ),
    Bug(
        "takes a token that is meant for another service",
        "wrong credentials are refused",
        f"{_SERVICE}/access/oidc.py",
        '"verify_iat": False}',
        '"verify_iat": False, "verify_aud": False}',
        "tests/access/test_oidc.py::test_anything_else_is_refused_and_not_quoted",
    ),
    Bug(
        "takes NaN for a score",
        "NaN is never selected",
        f"{_SERVICE}/selectors.py",
        "return np.where(np.isfinite(scores), scores, np.float32(-np.inf))",
        "return scores",
        "tests/mathematics/test_selectors.py::test_candidates_without_a_finite_score_are_never_selected",
    ),
    Bug(
        "takes NaN for a pixel",
        "NaN is never selected",
        f"{_SERVICE}/columns.py",
        'wrong, rule = ~np.isfinite(values), "finite"',
        'wrong, rule = np.isinf(values), "finite"',
        "tests/pipeline/test_super_batch.py::test_values_that_are_not_finite_are_refused_with_their_row",
    ),
    Bug(
        "gives every rank the same noise",
        "selections follow from seed, run, step and rank",
        f"{_CLIENT}/randomness.py",
        "np.array([0, domain, rank, step], np.uint64)",
        "np.array([0, domain, 0, step], np.uint64)",
        "tests/mathematics/test_randomness.py::test_any_other_key_gives_other_numbers",
    ),
    Bug(
        "turns the Gumbel noise round",
        "draws have the chances that they say",
        f"{_SERVICE}/randomness.py",
        "return -np.log(-np.log(uniform))",
        "return np.log(-np.log(uniform))",
        "tests/mathematics/test_randomness.py::test_gumbel_noise_has_the_mean_and_variance_of_its_distribution",
    ),
    Bug(
        "breaks ties from behind",
        "selections follow from seed, run, step and rank",
        f"{_SERVICE}/selectors.py",
        "tied = np.flatnonzero(keys == threshold)[: count - len(above)]",
        "tied = np.flatnonzero(keys == threshold)[::-1][: count - len(above)]",
        "tests/mathematics/test_selectors.py::test_top_k_breaks_ties_by_position",
    ),
    Bug(
        "weights by the smallest chance's inverse",
        "draws have the chances that they say",
        f"{_SERVICE}/selectors.py",
        "log_chances.min() - log_chances",
        "log_chances.max() - log_chances",
        "tests/mathematics/test_selectors.py::test_importance_weights_are_the_inverse_of_the_chances_over_the_largest",
    ),
    Bug(
        "scores steps that are held back",
        "the control arm is uniform",
        f"{_SERVICE}/schedule.py",
        "if is_held_back(spec, step) or not _is_selecting(spec, step):",
        "if not _is_selecting(spec, step):",
        "tests/service/test_control_arm.py::"
        "test_held_back_steps_are_uniform_marked_and_counted_and_the_others_equal_the_naive_loop",
    ),
    Bug(
        "holds back steps instead of blocks",
        "the control arm is uniform",
        f"{_SERVICE}/schedule.py",
        "block = step // spec.control_block_steps",
        "block = step",
        "tests/mathematics/test_schedule.py::test_held_back_steps_are_those_of_the_naive_loop_and_come_in_whole_blocks",
    ),
    Bug(
        "does not charge padding",
        "the cost meter counts what is computed",
        f"{_SERVICE}/selected.py",
        "self.learner_rows += by_learner * micro_batch.rows",
        "self.learner_rows += by_learner * micro_batch.row_count",
        "tests/service/test_cost_meter.py::test_padding_is_charged_and_little",
    ),
    Bug(
        "charges one reference of two",
        "the cost meter counts what is computed",
        f"{_SERVICE}/cost_meter.py",
        "    reference *= references\n",
        "",
        "tests/service/test_cost_meter.py::test_the_two_references_of_a_run_are_charged_each",
    ),
    Bug(
        "trains rank by rank",
        "co-training is that of a plain loop",
        f"{_SERVICE}/co_training/blocks.py",
        "for step in range(first, first + spec.publish_every) for rank in range(spec.ranks))",
        "for rank in range(spec.ranks) for step in range(first, first + spec.publish_every))",
        "tests/co_training/test_blocks.py::test_a_block_is_trained_on_in_the_order_of_steps_and_ranks",
    ),
    Bug(
        "takes a table of losses that somebody changed",
        "reference losses are those of the reference",
        f"{_SERVICE}/losses_file.py",
        'if "columns_digest" in metadata and digest_of_columns(table) != metadata["columns_digest"]:',
        "if False:",
        "tests/service/test_reference_losses.py::test_a_table_that_somebody_changed_is_refused_in_one_line",
    ),
    Bug(
        "samples once more than max_times_sampled",
        "a memory bank samples as often as it says",
        f"{_SERVICE}/memory_bank/rows.py",
        "counted.take(times < max_times_sampled)",
        "counted.take(times <= max_times_sampled)",
        "tests/memory_bank/test_bank.py::test_an_example_is_sampled_as_often_as_the_run_says",
    ),
    Bug(
        "remembers two super-batches as one step",
        "a memory bank does each step once",
        f"{_SERVICE}/memory_bank/bank.py",
        "if record.identity != identity:",
        "if False:",
        "tests/memory_bank/test_bank_store.py::test_a_name_is_not_used_for_something_else",
    ),
)
"""In the order of docs/reliability.md."""


def table(bugs: Iterable[Bug]) -> str:
    """Returns the bugs as Markdown."""
    rows = [f"| {bug.promise} | {bug.name} | `{_place(bug.file)}` | `{_test(bug.test)}` |" for bug in bugs]
    return "\n".join(["| Promise | What a bug does | In | Caught by |", "|---|---|---|---|", *rows])


def _place(file: str) -> str:
    return file.removeprefix(f"{_SERVICE}/").removeprefix("clients/python/")


def _test(name: str) -> str:
    return name.removeprefix("tests/").partition("[")[0]


def main() -> None:
    """Writes the table into its page."""
    PAGE.write_text(with_table(PAGE.read_text(), table(BUGS), "bugs"))


if __name__ == "__main__":
    main()
