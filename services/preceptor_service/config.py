"""`ServiceConfig`: every setting of the service, read once, unknown keys refused.

The Helm chart passes its `config:` through unchanged, so this module is also the chart's reference.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

MIB = 1024 * 1024

Positive = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Resources = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class ConfigError(ValueError):
    """The configuration cannot be used; the text names each setting, its value and the limit."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewayConfig(_Section):
    """The gRPC server that trainers talk to."""

    host: str = Field("127.0.0.1", description="Address to listen on; beyond this machine only with `tls` and `auth`.")
    port: Port = Field(7600, description="Port to listen on; 0 takes a free one.")
    replicas: Positive = Field(1, description="Gateways, at most one per node.")
    num_cpus: float = Field(0.0, ge=0, description="CPUs that Ray reserves for each gateway.")
    resources: Resources = Field(
        default_factory=dict,
        description="Custom Ray resources for each gateway, to place it on nodes that have them.",
    )
    max_streams: Positive = Field(256, description="Open Select streams per gateway.")
    max_streams_per_run: Positive = Field(64, description="Open Select streams of one run per gateway.")
    window_bytes: Positive = Field(128 * MIB, description="Unanswered bytes per Select stream.")
    body_bytes: Positive = Field(
        1024 * MIB,
        description="Bodies of super-batches from their announcement to their answer, over all calls. A run takes at "
        "most as much as it leaves free; what does not fit waits.",
    )
    max_super_batch_bytes: Positive = Field(64 * MIB, description="Largest body of one super-batch.")
    max_super_batch_rows: Positive = Field(1_000_000, description="Largest B.")
    max_chunk_bytes: Positive = Field(1 * MIB, description="Largest piece of a body in one message.")
    in_flight_bytes: Positive = Field(
        64 * MIB,
        description="Bytes of micro-batches that scorers of one gateway hold at once, over all streams; each counts as "
        "1 MiB at least. A run that holds least is next.",
    )
    silence_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        25.0,
        description="Longest silence of a connection, in the middle of a body, or in taking one answer; then all that "
        "is held for it is freed.",
    )
    drain_s: PositiveSeconds = Field(30.0, description="Time to finish what was accepted when stopping.")
    deadline_s: PositiveSeconds = Field(20.0, description="Longest answer where a run names no deadline.")
    answer_cache_bytes: int = Field(64 * MIB, ge=0, description="Answers kept for repeated steps, over all runs.")

    @model_validator(mode="after")
    def _window_holds_a_super_batch(self) -> GatewayConfig:
        if self.max_super_batch_bytes > self.window_bytes:
            raise ValueError(
                f"max_super_batch_bytes {self.max_super_batch_bytes} is above window_bytes {self.window_bytes}; "
                "such a super-batch could never be sent"
            )
        if self.max_super_batch_bytes > self.body_bytes:
            raise ValueError(
                f"max_super_batch_bytes {self.max_super_batch_bytes} is above body_bytes {self.body_bytes}; "
                "such a super-batch would shut all others out"
            )
        return self


class MetricsConfig(_Section):
    """The Prometheus endpoint of each gateway."""

    enabled: bool = Field(True, description="Whether to serve metrics.")
    host: str = Field("127.0.0.1", description="Address to listen on; anybody who reaches it can read run names.")
    port: Port = Field(9464, description="Port to listen on; 0 takes a free one.")


class TracingConfig(_Section):
    """OpenTelemetry traces of super-batches; see `docs/tracing.md`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/@\s]+:[0-9]+$")] | None = Field(
        None, description="OTLP/gRPC collector: http://host:port in plaintext, https://host:port by TLS; none: off."
    )
    ca: Path | None = Field(None, description="PEM file of authorities for an https endpoint; none: gRPC's own.")
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share that is traced: of the trainers' traces, and of super-batches that come without one."
    )
    service_name: Annotated[str, Field(min_length=1)] = Field(
        "preceptor", description="What the spans of gateways and scorers say as `service.name`."
    )

    @model_validator(mode="after")
    def _ca_is_for_tls(self) -> TracingConfig:
        if self.ca is not None and not (self.endpoint or "").startswith("https:"):
            raise ValueError(f"ca is for an https endpoint, the endpoint is {self.endpoint}; make it https, or drop ca")
        return self


class ScorerConfig(_Section):
    """The scorers, each with one device."""

    replicas: Positive = Field(1, description="Scorers to start; the lower bound where autoscaling.")
    max_replicas: Positive | None = Field(None, description="Upper bound of autoscaling; none: a fixed number.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for each scorer.")
    num_gpus: float | None = Field(None, ge=0, description="GPUs for each; none: 1 where the cluster has one, else 0.")
    resources: Resources = Field(
        default_factory=dict,
        description="Custom Ray resources for each scorer, to place it on nodes that have them.",
    )
    target_load: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        4.0, description="Micro-batches per scorer, under way and waiting at gateways, that autoscaling aims at."
    )
    upscale_delay_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        30.0, description="How long the load must be above the target before scorers are added."
    )
    downscale_delay_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        600.0, description="How long the load must be below the target before scorers are removed."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run.")
    threads: Positive | None = Field(
        None, description="Threads of one forward pass on a CPU; none: num_cpus rounded up, or all cores in process."
    )
    model_bytes: Positive = Field(4096 * MIB, description="Weights that one scorer holds; least recently used out.")
    micro_batch_rows: Positive = Field(512, description="Rows of one forward pass, fixed per run at its creation.")
    micro_batch_timeout_s: PositiveSeconds = Field(
        60.0, description="Longest answer to one micro-batch before it goes to another scorer."
    )
    hedge_after_s: PositiveSeconds = Field(
        2.0,
        description="Shortest wait for a micro-batch until another scorer is asked, too: some times longer where all "
        "are slow.",
    )
    load_timeout_s: PositiveSeconds = Field(10.0, description="Longest wait of a push for scorers to load it.")
    max_ongoing: Positive = Field(4, description="Micro-batches that one scorer queues before others are tried.")

    @model_validator(mode="after")
    def _autoscaling_has_room(self) -> ScorerConfig:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below replicas {self.replicas}, its lower bound; raise it"
            )
        return self

    @property
    def threads_or_default(self) -> int:
        """Threads of one forward pass on a scorer that Ray gave `num_cpus`."""
        return self.threads or max(1, math.ceil(self.num_cpus))


_MASKED = "location_refused"
_OBJECT_STORE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?")


def _store_location(value: str | Path) -> str | Path:
    if isinstance(value, Path) or "://" not in value:
        return Path(value)
    if not _OBJECT_STORE.fullmatch(value):
        masked = re.sub(r"//[^/]*@", "//…@", value)
        raise PydanticCustomError(
            _MASKED,
            "is {masked}; give a directory, or s3://bucket/prefix: the bucket with 3 to 63 of a-z, 0-9, - and ., "
            "and without credentials, which come from the environment",
            {"masked": masked},
        )
    return value.rstrip("/")


class WeightsConfig(_Section):
    """The durable store of runs and weights."""

    path: Annotated[str | Path, AfterValidator(_store_location)] = Field(
        Path("preceptor-store"),
        description="Directory on a file system with hard links, the same for every gateway and scorer; or "
        "s3://bucket/prefix of an object store with conditional writes (pip install 'preceptor[s3]').",
    )
    cache_path: Path = Field(
        Path("preceptor-cache"),
        description="Directory of each machine for weights from and for an object store; not used beside a directory.",
    )
    cache_bytes: Positive = Field(
        16384 * MIB, description="Weights that stay in `cache_path`, least recently used out; above `max_bytes`."
    )
    keep_versions: Annotated[int, Field(ge=2)] = Field(4, description="Learner versions kept per run.")
    max_bytes: Positive = Field(4096 * MIB, description="Largest set of weights.")
    grace_s: PositiveSeconds = Field(
        120.0,
        description="How long an expired version stays for the super-batches pinned to it; above any `deadline_s`.",
    )

    @property
    def location(self) -> str:
        """The directory from the root on, or the URI."""
        return self.path if isinstance(self.path, str) else str(self.path.expanduser().absolute())

    @model_validator(mode="after")
    def _cache_holds_a_set_of_weights(self) -> WeightsConfig:
        if isinstance(self.path, str) and self.cache_bytes < self.max_bytes:
            raise ValueError(
                f"cache_bytes {self.cache_bytes} is below max_bytes {self.max_bytes}; "
                "the largest set of weights would push itself out"
            )
        return self


class LedgerConfig(_Section):
    """Ledgers of the runs that asked for one, in the store of `weights`; see `docs/ledger.md`."""

    max_bytes: Positive = Field(4096 * MIB, description="All ledgers together in the store; oldest out.")
    max_bytes_per_run: Positive = Field(256 * MIB, description="The ledger of one run; oldest out.")
    max_steps_per_run: Positive = Field(100_000, description="Answered super-batches in it; oldest out.")
    buffer_bytes: Positive = Field(
        64 * MIB, description="Answers of one gateway that wait in memory to be written; oldest out, and counted."
    )
    flush_s: PositiveSeconds = Field(
        5.0, description="Longest time that they wait while the store takes them: what a killed gateway loses."
    )


class MemoryBankConfig(_Section):
    """Memory banks of the runs that asked for one, in the store of `weights`; see `docs/memory-bank.md`."""

    max_bytes_per_run: Positive = Field(
        256 * MIB, description="Largest bank of one run, in memory, for the longest ids; bounds a run's `capacity`."
    )
    max_bytes: Positive = Field(
        1024 * MIB, description="Banks that one gateway holds in memory; least recently used out, read again on use."
    )
    keep_operations: Positive = Field(
        4096, description="Answers to `remember` and `sample` that a run's bank keeps for repeated steps; oldest out."
    )
    keep_bytes: Positive = Field(64 * MIB, description="Bytes of them in the store.")


class CoTrainingConfig(_Section):
    """Online models that are trained in the service, in the store of `weights`; see `docs/co-training.md`."""

    journal_bytes: Positive = Field(
        1024 * MIB,
        description="Sub-batches of one run that were handed out and not trained on yet; then its steps wait.",
    )
    answers_bytes: Positive = Field(
        64 * MIB, description="Answers of one run that are kept for a trainer that asks again; oldest out."
    )
    timeout_s: PositiveSeconds = Field(
        300.0, description="Longest training of one block by a scorer before another one is asked."
    )


class LimitsConfig(_Section):
    """Bounds on what clients may create."""

    max_runs: Positive = Field(1000, description="Runs that exist at once.")
    max_runs_per_identity: Positive = Field(500, description="Runs of one creator at once, where callers are known.")
    max_streams_per_identity: Positive = Field(
        256, description="Open Select, Score and PushWeights calls of one caller per gateway, where callers are known."
    )


class TlsConfig(_Section):
    """The gateway's certificate; the files are read again when they change."""

    certificate: Path = Field(description="PEM file: the certificate, then its intermediates.")
    private_key: Path = Field(description="PEM file: the certificate's key, not encrypted.")
    client_ca: Path | None = Field(
        None, description="PEM file of authorities; given: every client must show a certificate of theirs."
    )


class OidcConfig(_Section):
    """JWTs of an OpenID provider. Where its keys lie is said here, never by a token."""

    issuer: Annotated[str, Field(min_length=1)] = Field(description="What the claim `iss` must be.")
    audience: Annotated[str, Field(min_length=1)] = Field(description="What the claim `aud` must name.")
    jwks_url: str | None = Field(None, description="https URL of the provider's keys.")
    jwks_ca: Path | None = Field(None, description="PEM file of authorities for `jwks_url`; none: the system's.")
    jwks_file: Path | None = Field(None, description="File of the provider's keys, instead of `jwks_url`.")
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(
        ("RS256", "ES256"), min_length=1, description="Signatures that are accepted; each with a public key."
    )
    leeway_s: Annotated[float, Field(ge=0, le=300)] = Field(30.0, description="Clock difference that is forgiven.")
    groups_claim: str = Field("groups", description="Claim with the names of the caller's groups.")

    @model_validator(mode="after")
    def _has_one_source_of_keys(self) -> OidcConfig:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give one of jwks_url and jwks_file")
        if self.jwks_url is not None and (
            urlsplit(self.jwks_url).scheme != "https" or not urlsplit(self.jwks_url).hostname
        ):
            raise ValueError("jwks_url must be an https URL; who alters the keys on their way is anybody he likes")
        return self


class AuthConfig(_Section):
    """Who may call; everything that is not granted is denied."""

    access_file: Path = Field(description="YAML of token hashes and grants; see `docs/security.md`.")
    oidc: OidcConfig | None = Field(None, description="Accepts JWTs besides the tokens of `access_file`.")
    allow_plaintext: bool = Field(
        False, description="Takes tokens without TLS beyond this machine, where something in front ends TLS."
    )
    recheck_s: Annotated[float, Field(gt=0, le=30)] = Field(
        10.0, description="Longest time until an open stream notices that its caller lost a right."
    )


class AuditConfig(_Section):
    """A line of JSON for each push, creation, deletion and reading of a ledger; see `docs/security.md`."""

    file: Path | None = Field(None, description="File to append to, besides the logger `preceptor.audit`.")


class ReferenceLossesConfig(_Section):
    """Tables of `preceptor build-reference-losses` that runs may name; see `docs/references.md`."""

    directory: Path | None = Field(
        None,
        description="Where NAME.parquet lies, on every gateway's machine. None: there are no tables.",
    )
    max_bytes: Positive = Field(4 << 30, description="Largest table in memory; every gateway holds those of its runs.")


class ServiceConfig(_Section):
    """All settings of the service."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        "preceptor", description="Name of the Ray Serve application, so that one Ray can run several services."
    )
    pool: Literal["ray", "in-process"] = Field("ray", description="Who runs the scorers.")
    gateway: GatewayConfig = GatewayConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    scorer: ScorerConfig = ScorerConfig()
    weights: WeightsConfig = WeightsConfig()
    ledger: LedgerConfig = LedgerConfig()
    memory_bank: MemoryBankConfig = MemoryBankConfig()
    co_training: CoTrainingConfig = CoTrainingConfig()
    limits: LimitsConfig = LimitsConfig()
    reference_losses: ReferenceLossesConfig = ReferenceLossesConfig()
    tls: TlsConfig | None = Field(None, description="None: plaintext.")
    auth: AuthConfig | None = Field(None, description="None: everybody who reaches the port may do everything.")
    audit: AuditConfig = AuditConfig()
    architectures: dict[str, str] = Field(
        default_factory=dict,
        description="More architectures that runs may name: name → 'package.module:function' of the operator's own.",
    )
    rules: dict[str, str] = Field(
        default_factory=dict, description="More score rules, the same way; their contract is in docs/scoring.md."
    )
    selectors: dict[str, str] = Field(
        default_factory=dict, description="More selectors, the same way; their contract is in docs/scoring.md."
    )

    def with_absolute_paths(self) -> ServiceConfig:
        """Returns the same settings, whose files are found from any directory."""
        return ServiceConfig.model_validate(_absolute(self.model_dump()))

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that tell one configuration from another; the same for all replicas of a service."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def is_insecure(self) -> bool:
        """Whether strangers may be able to use it: it listens beyond this machine, and asks nobody who they are."""
        knows_callers = self.auth is not None or (self.tls is not None and self.tls.client_ca is not None)
        return not is_loopback(self.gateway.host) and not knows_callers

    @model_validator(mode="after")
    def _expired_weights_outlive_their_super_batches(self) -> ServiceConfig:
        if self.weights.grace_s <= self.gateway.deadline_s:
            raise ValueError(
                f"weights.grace_s {self.weights.grace_s} is not above gateway.deadline_s {self.gateway.deadline_s}; "
                "the weights of a super-batch under way could be removed; raise grace_s"
            )
        return self

    @model_validator(mode="after")
    def _tokens_travel_encrypted(self) -> ServiceConfig:
        if self.auth is None or self.tls is not None or self.auth.allow_plaintext or is_loopback(self.gateway.host):
            return self
        raise ValueError(
            f"auth without tls on {self.gateway.host}: tokens would travel in the clear; configure tls, listen on "
            "127.0.0.1, or set auth.allow_plaintext where something in front of the gateway ends TLS"
        )


def _absolute(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {name: _absolute(value) for name, value in settings.items()}
    return settings.expanduser().absolute() if isinstance(settings, Path) else settings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_config(path: Path | None, overrides: dict[str, Any] | None = None) -> ServiceConfig:
    """Returns the settings of a YAML file, with `overrides` (nested, same keys) on top.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, has an unknown key or a value out of range.
    """
    settings: Any = {}
    if path is not None:
        try:
            settings = yaml.safe_load(path.read_text()) or {}
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"cannot read {_place(path, error)}: {error.problem}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds a {type(settings).__name__}; it must be a mapping of settings")
    return parse_config(_merged(settings, overrides or {}))


def parse_config(settings: dict[str, Any]) -> ServiceConfig:
    """Returns the settings as a `ServiceConfig`.

    Raises:
        ConfigError: naming each wrong setting.
    """
    try:
        return ServiceConfig.model_validate(settings)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc'])) or 'config'}: {_complaint(item['type'], item['msg'], item['input'])}"
            for item in error.errors()
        ]
        raise ConfigError("the configuration cannot be used:\n" + "\n".join(lines)) from error


def _place(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return str(path) if mark is None else f"{path}:{mark.line + 1}:{mark.column + 1}"


def _complaint(kind: str, message: str, value: object) -> str:
    match kind:
        case "extra_forbidden":
            return "no such setting"
        case "missing":
            return "is missing; give it, or leave the section out"
        case "value_error":
            return message.removeprefix("Value error, ")
    if kind == _MASKED:
        return message
    return f"{message} (is {value!r})" if not isinstance(value, dict) else message


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged
