"""★ The experiments: what is compared with what, on which data, with which models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.learning.data import corpus, scenes
from benchmarks.learning.prediction import online_share
from benchmarks.learning.settings import COMPOSER, Data, Model, Reference, Selection, Split, Training

BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Shares of the uniform budget that every arm is trained for."""

_SIDE_BUDGETS = (1.0, 0.5, 0.35)
_FULL_AND_HALF = (1.0, 0.5)
"""For ablations, which are many."""

SEEDS = (0, 1, 2)
_OWN_SEEDS = (10, 11, 12)
"""Of what runs in an environment of its own: no arm is taken from another experiment, so seconds compare."""

UNIFORM = "uniform"
"""Name of the control arm."""


@dataclass(frozen=True)
class Axis:
    """What the arms of an experiment differ in, as a number.

    Attributes:
        label: of the picture's axis.
        value: arm's settings → number.
        is_share: it is shown in per cent.
    """

    label: str
    value: Callable[[Training], float]
    is_share: bool = False


@dataclass(frozen=True)
class Experiment:
    """A question, and the arms that answer it.

    Attributes:
        name: as on the command line.
        question: what it is for, a sentence.
        base: the uniform arm at the full budget, of any seed.
        arms: name → how it selects; None: the control.
        budgets: shares of the full budget.
        seeds: of the runs.
        quality: which of the qualities decides.
        also: others that are reported.
        package: that it needs besides our own.
        axis: None: the picture is of the arms over budgets; else of the budgets over what the arms differ in.
    """

    name: str
    question: str
    base: Training
    arms: Mapping[str, Selection | None]
    budgets: tuple[float, ...] = BUDGETS
    seeds: tuple[int, ...] = SEEDS
    quality: str = "accuracy"
    also: tuple[str, ...] = ()
    package: str | None = None
    axis: Axis | None = None

    def training(self, arm: str, budget: float, seed: int) -> Training:
        """Returns the settings of one run."""
        updates = round(self.base.updates * budget)
        return replace(self.base, selection=self.arms[arm], updates=updates, seed=seed)

    def runs(self) -> Iterator[Training]:
        """Yields every run: seed by seed, and the full budgets of a seed first."""
        for seed in self.seeds:
            for budget in self.budgets:
                for arm in self.arms:
                    yield self.training(arm, budget, seed)

    def smoke(self) -> Experiment:
        """Returns a form of seconds, to see that everything runs: a few updates on a few examples, one seed."""
        options = {**self.base.data.options, "limit": 400}
        base = replace(
            self.base, data=Data(self.base.data.builder, options), updates=4, sub_batch_size=16,
            measured_on="validation",
        )  # fmt: skip
        arms = {name: None if arm is None else _short(arm) for name, arm in self.arms.items()}
        return replace(self, base=base, arms=arms, budgets=(1.0, 0.5), seeds=(0,))


def _short(arm: Selection) -> Selection:
    reference = None if arm.reference is None else replace(arm.reference, updates=4)
    return replace(arm, reference=reference, push_every=2)


def _cnn(width: int) -> Model:
    return Model("strided_cnn", {"width": width})


LEARNER, ONLINE = _cnn(32), _cnn(8)

CLEAN_REFERENCE = Reference(_cnn(8), "clean", updates=500, learning_rate=5e-3)
_LONG_REFERENCE = replace(CLEAN_REFERENCE, updates=2_000, learning_rate=3e-3)

LEARNABILITY = Selection(
    score="learnability", selector="softmax", temperature=1.0, ratio=5, online=ONLINE, online_learning_rate=3e-3,
    push_every=10, reference=CLEAN_REFERENCE,
)  # fmt: skip


def _images(builder: str, options: Mapping[str, Any], measured_on: Split = "test") -> Training:
    return Training(
        task="classification", data=Data(builder, options), learner=LEARNER, learning_rate=1e-3, updates=1_000,
        sub_batch_size=64, selection=None, seed=0, measured_on=measured_on,
    )  # fmt: skip


def _of_selection(label: str, attribute: str) -> Axis:
    return Axis(label, lambda settings: float(getattr(settings.selection, attribute)))


def _scored_by(width: int) -> Selection:
    """Returns learnability with an online model and a reference of that width."""
    return replace(LEARNABILITY, online=_cnn(width), reference=replace(CLEAN_REFERENCE, model=_cnn(width)))


_IN_DOMAIN = replace(LEARNABILITY, reference=replace(CLEAN_REFERENCE, trained_on="pool"))
_LONG_IN_DOMAIN = replace(LEARNABILITY, reference=replace(_LONG_REFERENCE, trained_on="pool"))

TRIAL_SEEDS = (100,)
"""Settings are chosen on a seed that is reported nowhere."""


def _trial(
    name: str, question: str, base: Training, arms: Mapping[str, Selection | None], quality: str = "accuracy"
) -> Experiment:
    """Returns an experiment by which settings are chosen: on the validation part, the full and half of the budget."""
    return Experiment(name, question, replace(base, measured_on="validation"), arms, (1.0, 0.5), TRIAL_SEEDS, quality)


_NOISY = _images("noisy_labels", {"share": 0.5})
_CLEAN = _images("noisy_labels", {"share": 0.0})
_IRRELEVANT = _images("irrelevant", {"share": 0.5})

_COMPOSER = Selection(
    score="selective_backprop", selector=COMPOSER, temperature=1.0, ratio=5, online=None, online_learning_rate=0.0,
    push_every=1, reference=None,
)  # fmt: skip


def _rate_trials(name: str, base: Training, quality: str = "accuracy") -> Iterator[Experiment]:
    """Yields the experiments by which a learning rate is chosen: the one at which the control learns best."""
    for rate in (5e-4, 1e-3, 2e-3):
        question = f"Does the control learn best at {rate:g}?"
        yield _trial(f"{name}-rate-{rate:g}", question, replace(base, learning_rate=rate), {UNIFORM: None}, quality)


def _gpt2(width: int, heads: int) -> Model:
    """Returns a decoder of one layer, without dropout."""
    config = {
        "model_type": "gpt2", "vocab_size": corpus.VOCABULARY, "context_length": corpus.CONTEXT, "n_embd": width,
        "n_layer": 1, "n_head": heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return Model("causal_lm", config)


_SEQUENCES = Training(
    task="causal_lm", data=Data("garbled_documents", {"share": 0.5}), learner=_gpt2(64, 2), learning_rate=6e-3,
    updates=600, sub_batch_size=32, selection=None, seed=0, measured_on="test",
)  # fmt: skip

_SMALL_DECODER = _gpt2(12, 1)

_SEQUENCE_LEARNABILITY = Selection(
    score="learnability", selector="softmax", temperature=0.3, ratio=5, online=_SMALL_DECODER,
    online_learning_rate=2e-2, push_every=10,
    reference=Reference(_SMALL_DECODER, "clean", updates=300, learning_rate=2e-2),
)  # fmt: skip


def _dual_encoder(width: int) -> Model:
    config = {"width": width, "vocab_size": scenes.VOCABULARY, "context_length": scenes.CONTEXT}
    return Model("strided_dual_encoder", config)


def _captions(contrast: str, updates: int = 1_000) -> Training:
    return Training(
        task="image_text", data=Data("mismatched_captions", {"share": 0.5}), learner=_dual_encoder(32),
        learning_rate=5e-4, updates=updates, sub_batch_size=64, selection=None, seed=0, measured_on="test",
        contrast=contrast,
    )  # fmt: skip


_CAPTION_LEARNABILITY = replace(
    LEARNABILITY, temperature=0.05, online=_dual_encoder(8), reference=replace(CLEAN_REFERENCE, model=_dual_encoder(8))
)

_LONG_CAPTION_REFERENCE = replace(_CAPTION_LEARNABILITY, reference=replace(_LONG_REFERENCE, model=_dual_encoder(8)))

EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *_rate_trials("trial", _NOISY),
        _trial(
            "trial-selection",
            "Which temperature, reference and push interval?",
            _NOISY,
            {
                UNIFORM: None,
                "learnability": LEARNABILITY,
                "temperature 0.5": replace(LEARNABILITY, temperature=0.5),
                "reference trained for 1,000": replace(
                    LEARNABILITY, reference=replace(CLEAN_REFERENCE, updates=1_000, learning_rate=3e-3)
                ),
                "pushed every 25": replace(LEARNABILITY, push_every=25),
            },
        ),
        _trial(
            "trial-noisy-reference",
            "Where the reference is trained on the noisy pool: what does the least harm?",
            _NOISY,
            {
                UNIFORM: None,
                "learnability": _IN_DOMAIN,
                "temperature 3": replace(_IN_DOMAIN, temperature=3.0),
                "temperature 10": replace(_IN_DOMAIN, temperature=10.0),
                "reference trained for 2,000": _LONG_IN_DOMAIN,
            },
        ),
        _trial(
            "trial-irrelevant",
            "Where half of the images are noise: how sharply is drawn, and by what?",
            _IRRELEVANT,
            {
                UNIFORM: None,
                "learnability": LEARNABILITY,
                "temperature 0.3": replace(LEARNABILITY, temperature=0.3),
                "temperature 0.1": replace(LEARNABILITY, temperature=0.1),
                "easy reference, temperature 1": replace(LEARNABILITY, score="easy_reference", online=None),
                "reference trained for 2,000": replace(LEARNABILITY, reference=_LONG_REFERENCE),
                "easy reference, trained for 2,000": replace(
                    LEARNABILITY, score="easy_reference", online=None, reference=_LONG_REFERENCE
                ),
                "reference trained on the pool for 2,000": _LONG_IN_DOMAIN,
                "the same, temperature 0.3": replace(_LONG_IN_DOMAIN, temperature=0.3),
            },
        ),
        Experiment(
            "noisy-labels",
            "Half of the pool's labels are wrong, and there are 5,000 clean examples: does selection pay?",
            _NOISY,
            {UNIFORM: None, "learnability": LEARNABILITY},
        ),
        Experiment(
            "noisy-reference",
            "The same pool, and nothing cleaner: the reference is trained on the pool itself.",
            _NOISY,
            {UNIFORM: None, "learnability": _IN_DOMAIN, "reference trained for 2,000": _LONG_IN_DOMAIN},
        ),
        Experiment(
            "clean-pool",
            "Nothing is wrong with the pool, and the reference is trained on it: what is left to gain?",
            _CLEAN,
            {UNIFORM: None, "learnability": _IN_DOMAIN},
        ),
        Experiment(
            "imbalanced",
            "Half of the classes are ten times rarer in the pool; the 5,000 clean examples are balanced.",
            _images("imbalanced", {"rare_classes": 5, "keep": 0.1}),
            {UNIFORM: None, "learnability": LEARNABILITY},
            also=("worst_class_accuracy",),
        ),
        Experiment(
            "irrelevant",
            "Half of the pool's images are no garments at all, with random labels.",
            _IRRELEVANT,
            {
                UNIFORM: None,
                "learnability": LEARNABILITY,
                "reference trained for 2,000": replace(LEARNABILITY, reference=_LONG_REFERENCE),
            },
            also=("worst_class_accuracy",),
        ),
        _trial(
            "trial-sequences",
            "Which temperature where losses are means over a document's words?",
            _SEQUENCES,
            {
                UNIFORM: None,
                "learnability": _SEQUENCE_LEARNABILITY,
                "temperature 1": replace(_SEQUENCE_LEARNABILITY, temperature=1.0),
                "temperature 0.1": replace(_SEQUENCE_LEARNABILITY, temperature=0.1),
            },
            "log_likelihood",
        ),
        Experiment(
            "sequences",
            "Documents of a generated language, half of them garbled, and 4,000 clean ones: a small language model.",
            _SEQUENCES,
            {UNIFORM: None, "learnability": _SEQUENCE_LEARNABILITY},
            quality="log_likelihood",
            also=("perplexity",),
        ),
        *_rate_trials("trial-captions-softmax", _captions("softmax"), "zero_shot_accuracy"),
        *_rate_trials("trial-captions-sigmoid", _captions("sigmoid"), "zero_shot_accuracy"),
        *(
            _trial(
                f"trial-captions-{contrast}",
                "Which temperature where losses are cosines?",
                _captions(contrast),
                {
                    UNIFORM: None,
                    "learnability": _CAPTION_LEARNABILITY,
                    "temperature 0.2": replace(_CAPTION_LEARNABILITY, temperature=0.2),
                    "temperature 0.1": replace(_CAPTION_LEARNABILITY, temperature=0.1),
                },
                "zero_shot_accuracy",
            )
            for contrast in ("softmax", "sigmoid")
        ),
        _trial(
            "trial-captions-sigmoid-longer",
            "The sigmoid loss, trained for twice as long.",
            _captions("sigmoid", updates=2_000),
            {
                UNIFORM: None,
                "learnability": _CAPTION_LEARNABILITY,
                "reference trained for 2,000": _LONG_CAPTION_REFERENCE,
            },
            "zero_shot_accuracy",
        ),
        *(
            Experiment(
                f"composer-{name}",
                f"Beside Composer's selective backprop, on a pool {what}.",
                base,
                {UNIFORM: None, "learnability": arm, "Composer": _COMPOSER},
                _FULL_AND_HALF,
                _OWN_SEEDS,
                package=COMPOSER,
            )
            for name, what, base, arm in (
                ("noisy", "half of whose labels are wrong", _NOISY, LEARNABILITY),
                ("clean", "without noise", _CLEAN, _IN_DOMAIN),
            )
        ),
        *(
            Experiment(
                f"captions-{contrast}",
                f"Half of the captions are another scene's; a dual encoder with the {contrast} loss.",
                _captions(contrast, updates),
                {UNIFORM: None, **arms},
                quality="zero_shot_accuracy",
                also=("recall_at_1",),
            )
            for contrast, updates, arms in (
                ("softmax", 1_000, {"learnability": _CAPTION_LEARNABILITY}),
                (
                    "sigmoid",
                    2_000,
                    {
                        "learnability": _CAPTION_LEARNABILITY,
                        "reference trained for 2,000": _LONG_CAPTION_REFERENCE,
                    },
                ),
            )
        ),
        Experiment(
            "noisy-labels-longer",
            "Half of the pool's labels are wrong: three times as many updates.",
            replace(_NOISY, updates=3_000),
            {UNIFORM: None, "learnability": LEARNABILITY},
            _SIDE_BUDGETS,
        ),
        Experiment(
            "scaling",
            "Online models and references from 0.6 % to 52 % of the learner's operations.",
            _NOISY,
            {UNIFORM: None, **{f"width {width}": _scored_by(width) for width in (2, 4, 8, 16, 23)}},
            _SIDE_BUDGETS,
            axis=Axis("operations of the online model, of the learner's", online_share, is_share=True),
        ),
        Experiment(
            "ablation-rule",
            "What a candidate is scored by: both losses, or one of them; and the best instead of a draw.",
            _NOISY,
            {
                UNIFORM: None,
                "learnability": LEARNABILITY,
                "RHO: learnability, top-k": replace(LEARNABILITY, selector="top_k"),
                "hard learner": replace(LEARNABILITY, score="hard_learner", reference=None),
                "easy reference": replace(LEARNABILITY, score="easy_reference", online=None),
            },
            _FULL_AND_HALF,
        ),
        Experiment(
            "ablation-temperature",
            "How sharply is drawn.",
            _NOISY,
            {UNIFORM: None, **{f"τ = {each:g}": replace(LEARNABILITY, temperature=each) for each in (0.3, 1.0, 3.0)}},
            _FULL_AND_HALF,
            axis=_of_selection("temperature τ", "temperature"),
        ),
        Experiment(
            "ablation-ratio",
            "How many candidates for each example that is selected.",
            _NOISY,
            {UNIFORM: None, **{f"B/b = {ratio}": replace(LEARNABILITY, ratio=ratio) for ratio in (2, 5, 10)}},
            _FULL_AND_HALF,
            axis=_of_selection("candidates for each example selected, B/b", "ratio"),
        ),
        Experiment(
            "ablation-staleness",
            "How old the online model's weights may get before they are pushed again.",
            _NOISY,
            {
                UNIFORM: None,
                **{f"pushed every {each}": replace(LEARNABILITY, push_every=each) for each in (1, 10, 50, 200, 500)},
            },
            _FULL_AND_HALF,
            axis=_of_selection("updates between two pushes of the online model", "push_every"),
        ),
    )
}
