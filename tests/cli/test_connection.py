"""What the commands that ask a gateway say where TLS, names or tokens do not fit, by a gateway with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preceptor import SelectionClient, Tls
from tests.access.certificates import Authority
from tests.access.conftest import Guarded
from tests.cli.conftest import Ran, Serving
from tests.service import digits

Run = Callable[..., Ran]

NAME = "gateway.example"
ASKING = {
    "runs": ["runs"],
    "one run": ["runs", "team-a"],
    "status": ["status", "--once"],
    "delete": ["delete", "team-a", "--yes"],
    "ledger": ["ledger", "export", "team-a", "--out", "unused.parquet"],
    "size": ["size", "--super-batch", "2", "--sub-batch", "1", "--step-time", "1", "--run", "team-a"],
}
EVERY = pytest.mark.parametrize("command", [*ASKING.values(), ["health"]], ids=[*ASKING, "health"])


class Secured:
    """The gateway, with the files and variables that reach it."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        pair = authority.issue(dns=NAME)
        self.files = {"ca": authority.pem, "stranger_ca": Authority("stranger").pem}
        self.files |= {"certificate": pair.certificate, "key": pair.private_key}
        self.folder = folder
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        tls = {"certificate": str(folder / "certificate"), "private_key": str(folder / "key")}
        self.guarded = Guarded(folder / "service", tls=tls)
        # The certificate is for 127.0.0.1 too, and not for this name of the same machine.
        self.target = f"localhost:{self.guarded.service.ports.grpc}"
        self.trusted = {"PRECEPTOR_TARGET": self.target, "PRECEPTOR_TLS_CA": str(folder / "ca")}
        self.named = {**self.trusted, "PRECEPTOR_TLS_NAME": NAME}

    def as_(self, caller: str) -> dict[str, str]:
        """The variables of somebody whom the gateway knows."""
        token = self.folder / f"token of {caller}"
        token.write_text(f"{self.guarded.token(caller)}\n")
        return {**self.named, "PRECEPTOR_TOKEN_FILE": str(token)}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    secured = Secured(tmp_path_factory.mktemp("secured"))
    tls = Tls(root_certificates=secured.files["ca"], server_name=NAME)
    with SelectionClient(secured.target, token=secured.guarded.token("owner"), tls=tls) as client:
        client.create_run(digits.spec("team-a"))
    yield secured
    secured.guarded.service.stop()


def complaint(ran: Ran) -> str:
    """The one line on standard error."""
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("preceptor: ")
    assert ran.err.count("\n") == 1
    return ran.err


@EVERY
def test_plaintext_to_a_gateway_with_tls_is_told_of_tls(preceptor: Run, secured: Secured, command: list[str]) -> None:
    ran = preceptor(*command, PRECEPTOR_TARGET=secured.target)
    assert f"{secured.target} hangs up; if it speaks TLS, give --tls-ca FILE, or --tls (" in complaint(ran)


@pytest.mark.parametrize("command", [["runs"], ["health"]], ids=str)
@pytest.mark.parametrize("authority", [["--tls"], ["--tls-ca", "stranger_ca"]], ids=str)
def test_a_certificate_of_an_unknown_authority_is_told_of_tls_ca(
    preceptor: Run, secured: Secured, command: list[str], authority: list[str]
) -> None:
    files = [str(secured.folder / word) if word in secured.files else word for word in authority]
    said = complaint(preceptor(*command, *files, PRECEPTOR_TARGET=secured.target))
    assert "is of no authority that we trust, or has ended; give its authority by --tls-ca FILE (" in said


@EVERY
def test_a_certificate_of_another_name_is_told_of_tls_name(
    preceptor: Run, secured: Secured, command: list[str]
) -> None:
    said = complaint(preceptor(*command, **secured.trusted))
    assert f"the certificate of {secured.target} bears another name; give that by --tls-name (" in said


def test_tls_to_a_gateway_in_plaintext_is_told_so(preceptor: Run, service: Serving, secured: Secured) -> None:
    target = f"127.0.0.1:{service.port()}"
    said = complaint(preceptor("health", **{**secured.trusted, "PRECEPTOR_TARGET": target}))
    assert f"{target} speaks no TLS; leave out the options that ask for it (" in said


@pytest.mark.parametrize("command", ASKING.values(), ids=[*ASKING])
def test_who_shows_no_token_is_told_of_the_ways_to_give_one(
    preceptor: Run, secured: Secured, command: list[str]
) -> None:
    said = complaint(preceptor(*command, **secured.named))
    assert f"{secured.target} asks who calls; give --token-file FILE, or set PRECEPTOR_TOKEN (" in said


def test_a_wrong_token_is_said_to_be_wrong(preceptor: Run, secured: Secured) -> None:
    said = complaint(preceptor("runs", **secured.named, PRECEPTOR_TOKEN="wrong"))
    assert said == "preceptor: the token is not accepted; ask the operator for a valid one\n"


def test_a_token_never_travels_in_plaintext(preceptor: Run) -> None:
    said = complaint(preceptor("runs", "--target", f"{NAME}:7600", PRECEPTOR_TOKEN="any"))
    assert (
        said == "preceptor: a token for gateway.example:7600 would travel unencrypted; give --tls-ca FILE, or --tls\n"
    )


@pytest.mark.parametrize("command", [["runs", "team-a"], ["delete", "team-a", "--yes"]], ids=str)
def test_who_has_no_right_is_told_which(preceptor: Run, secured: Secured, command: list[str]) -> None:
    assert "preceptor: stranger has no role '" in complaint(preceptor(*command, **secured.as_("stranger")))


@pytest.mark.parametrize("command", [["runs"], ["status", "--once"]], ids=str)
def test_who_may_see_nothing_is_told_that_there_may_be_more(
    preceptor: Run, secured: Secured, command: list[str]
) -> None:
    ran = preceptor(*command, **secured.as_("stranger"))
    assert (ran.code, ran.out) == (0, f"no runs at {secured.target} that you may see\n")


def test_health_needs_no_token_and_reads_none(preceptor: Run, secured: Secured) -> None:
    ran = preceptor("health", **secured.named, PRECEPTOR_TOKEN_FILE="nowhere")
    assert (ran.code, ran.out, ran.err) == (0, "serving\n", "")


def test_a_run_names_its_owner(preceptor: Run, secured: Secured) -> None:
    assert "\nowner: owner\n" in preceptor("runs", "team-a", **secured.as_("scorer")).out


@pytest.mark.parametrize(
    ("given", "missing"), [("--tls-certificate", "--tls-key"), ("--tls-key", "--tls-certificate")], ids=str
)
def test_half_of_a_pair_is_told_of_the_other(preceptor: Run, given: str, missing: str) -> None:
    said = complaint(preceptor("runs", given, "unused"))
    assert said == f"preceptor: {given} is given without {missing}; give both\n"


@pytest.mark.parametrize("option", ["--token-file", "--tls-ca"])
def test_a_file_that_is_not_there_is_named(preceptor: Run, option: str) -> None:
    assert complaint(preceptor("runs", option, "nowhere")) == (
        "preceptor: cannot read nowhere: No such file or directory\n"
    )
