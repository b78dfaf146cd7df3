"""What an operator mistypes is told before anything is served: in plain words, with the variable's name."""

import os
import ssl
import subprocess
import sys
from base64 import b64encode
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import PROJECT, Certificate, make_certificate
from structlog.testing import capture_logs

from app import startup
from app.settings import Settings, clean_token
from app.startup import Misconfigured, check, doubts, read_settings, unknown_variables
from app.tls import (
    CERTFILE_VARIABLE,
    KEYFILE_VARIABLE,
    UnusableCertificate,
    Validity,
    check_certificate,
    doubts_about,
    read_validity,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    for field in Settings.model_fields:
        monkeypatch.delenv(f"STALECAST_{field.upper()}", raising=False)


# -- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    made = make_certificate(tmp_path_factory.mktemp("certificate"))
    if made is None:
        pytest.skip("the openssl command is not installed")
    return made


@pytest.fixture(scope="module")
def files(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each by what is wrong with it."""
    folder = tmp_path_factory.mktemp("files")
    other = make_certificate(folder)
    assert other is not None
    made = {"cert": str(certificate.certfile), "key": str(certificate.keyfile), "other": str(other.keyfile)}
    made |= {"folder": str(folder), "missing": str(folder / "missing"), "nul": "a\0b"}

    def write(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        made[name] = str(folder / name)

    cert, key = certificate.certfile.read_bytes(), certificate.keyfile.read_bytes()
    write("empty", b"")
    write("blank", b"\n \n")
    write("cut", cert[: len(cert) // 2])
    write("cutkey", key[: len(key) // 2])
    write("both", cert + key)
    write("der", ssl.PEM_cert_to_DER_cert(cert.decode()))
    write("text", b"not a certificate\n")
    for name, arguments in {"encrypted": ["pkey"], "encrypted_old": ["ec"]}.items():
        made[name] = str(folder / name)
        subprocess.run(
            ["openssl", *arguments, "-aes128", "-passout", "pass:x", "-in", made["key"], "-out", made[name]],
            check=True, capture_output=True,
        )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("cert", None, [CERTFILE_VARIABLE, KEYFILE_VARIABLE, "needs both"]),
        (None, "key", [CERTFILE_VARIABLE, KEYFILE_VARIABLE, "needs both"]),
        ("missing", "key", [f"{CERTFILE_VARIABLE}=", "No such file"]),
        ("cert", "missing", [f"{KEYFILE_VARIABLE}=", "No such file"]),
        ("folder", "key", [f"{CERTFILE_VARIABLE}=", "is a directory"]),
        ("cert", "folder", [f"{KEYFILE_VARIABLE}=", "is a directory"]),
        ("empty", "key", [f"{CERTFILE_VARIABLE}=", "is empty"]),
        ("cert", "blank", [f"{KEYFILE_VARIABLE}=", "is empty"]),
        ("nul", "key", [f"{CERTFILE_VARIABLE}=", "cannot be read"]),
        ("key", "cert", [CERTFILE_VARIABLE, KEYFILE_VARIABLE, "swap"]),
        ("key", "key", [f"{CERTFILE_VARIABLE}=", "holds no certificate"]),
        ("cert", "cert", [f"{KEYFILE_VARIABLE}=", "holds no private key"]),
        ("der", "key", [f"{CERTFILE_VARIABLE}=", "holds no certificate", "openssl x509"]),
        ("text", "key", [f"{CERTFILE_VARIABLE}=", "holds no certificate"]),
        ("cert", "text", [f"{KEYFILE_VARIABLE}=", "holds no private key"]),
        ("cert", "other", [CERTFILE_VARIABLE, f"{KEYFILE_VARIABLE}=", "is not that of the certificate"]),
        ("cert", "encrypted", [f"{KEYFILE_VARIABLE}=", "encrypted", "openssl pkey"]),
        ("cert", "encrypted_old", [f"{KEYFILE_VARIABLE}=", "encrypted", "openssl pkey"]),
        ("cut", "key", [CERTFILE_VARIABLE, KEYFILE_VARIABLE, "cut off"]),
        ("cert", "cutkey", [CERTFILE_VARIABLE, KEYFILE_VARIABLE, "cut off"]),
    ],
)
def test_a_certificate_that_cannot_be_served_with_is_told_by_name(
    files: dict[str, str], cert: str | None, key: str | None, words: list[str]
) -> None:
    with pytest.raises(UnusableCertificate) as caught:
        check_certificate(cert and files[cert], key and files[key])
    for word in words:
        assert word in str(caught.value)


def test_files_that_may_not_be_read_are_told(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run these tests, reads everything
    with pytest.raises(UnusableCertificate, match="let the server's user read it"):
        check_certificate(str(certificate.certfile), str(certificate.keyfile))


def test_tls_is_served_only_with_both_files(certificate: Certificate, files: dict[str, str]) -> None:
    assert check_certificate(None, None) is False
    assert check_certificate(str(certificate.certfile), str(certificate.keyfile)) is True
    assert check_certificate(files["both"], files["both"]) is True


def dated(begins: datetime, ends: datetime, *, version: bool = True) -> bytes:
    """What a certificate is up to its dates, in DER, with something behind."""

    def element(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2)
        return bytes([tag]) + length + content

    def time(at: datetime) -> bytes:
        form, tag = ("%y%m%d%H%M%SZ", 0x17) if 1950 <= at.year < 2050 else ("%Y%m%d%H%M%SZ", 0x18)
        return element(tag, at.strftime(form).encode())

    signed = element(0xA0, b"\x02\x01\x02") if version else b""
    signed += element(0x02, b"\x01") + element(0x30, b"") + element(0x30, b"x" * 300)
    signed += element(0x30, time(begins) + time(ends)) + b"more"
    return element(0x30, element(0x30, signed) + b"signature")


seconds = st.datetimes(datetime(1951, 1, 1), datetime(9999, 12, 31)).map(
    lambda at: at.replace(microsecond=0, tzinfo=UTC)
)


@given(seconds, seconds, st.booleans(), st.data())
def test_the_dates_of_a_certificate_are_read_and_of_a_part_of_one_are_not(
    begins: datetime, ends: datetime, version: bool, data: st.DataObject
) -> None:
    der = dated(begins, ends, version=version)
    assert read_validity(b64encode(der)) == Validity(begins, ends)
    assert read_validity(b64encode(der[: data.draw(st.integers(0, len(der) - 1))])) is None


@given(st.binary())
def test_what_is_no_certificate_has_no_dates(content: bytes) -> None:
    assert read_validity(content) is None
    assert read_validity(b64encode(content)) is None


def test_a_certificate_is_doubted_outside_its_dates(certificate: Certificate, tmp_path: Path) -> None:
    told = subprocess.run(
        ["openssl", "x509", "-in", certificate.certfile, "-noout", "-dates"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    begins, ends = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(line.partition("=")[2]), UTC)
        for line in told.splitlines()
    )

    def doubted(at: datetime, file: Path = certificate.certfile) -> list[str]:
        return list(doubts_about(str(file), at))

    second = timedelta(seconds=1)
    assert [doubted(at) for at in (begins, begins + second, ends)] == [[], [], []]
    (expired,) = doubted(ends + second)
    assert f"{CERTFILE_VARIABLE}=" in expired
    assert f"has expired on {ends:%Y-%m-%d}" in expired
    (early,) = doubted(begins - second)
    assert f"not valid before {begins:%Y-%m-%d}" in early

    chain = tmp_path / "chain.pem"
    long_ago = b64encode(dated(begins - timedelta(9), begins - timedelta(3)))
    old = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % long_ago
    chain.write_bytes(certificate.keyfile.read_bytes() + certificate.certfile.read_bytes() + old)
    (of_the_chain,) = doubted(ends, chain)
    assert "(certificate 2 in it) has expired" in of_the_chain


def test_files_that_cannot_be_used_are_not_doubted_as_well(files: dict[str, str]) -> None:
    now = datetime.now(UTC) + timedelta(3650)
    for name in {"missing", "nul", "folder", "empty", "blank", "cut", "der", "text", "key"}:
        assert list(doubts_about(files[name], now)) == []


@pytest.mark.parametrize("days", [-3650, 0, 3650])
def test_a_certificate_that_clients_refuse_is_one_line_at_start(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    class Elsewhen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days)

    monkeypatch.setattr(startup, "datetime", Elsewhen)
    settings = Settings(tls_certfile=str(certificate.certfile), tls_keyfile=str(certificate.keyfile))
    with capture_logs() as logs:
        startup.warn(settings, {})
    assert [line["event"] for line in logs] == ["doubtful_setting"] * (days != 0)
    assert check(settings)  # it is served all the same


# -- tokens


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        ("  secret\t", "secret"),
        ("two words", "two words"),
        ("grün-пароль", "grün-пароль"),
    ],
)
def test_what_a_file_leaves_around_a_token_is_not_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    monkeypatch.setenv("STALECAST_PUBLISH_TOKEN", given)
    token = read_settings().publish_token
    assert token is not None
    assert token.get_secret_value() == kept
    assert clean_token(given) == kept


@pytest.mark.parametrize("char", ["\n", "\r", "\x01", "\x7f", "\u200b", "\ufeff", "\xa0", "\udce9"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, char: str
) -> None:
    monkeypatch.setenv("STALECAST_PUBLISH_TOKEN", f"se{char}cret")
    with pytest.raises(Misconfigured, match="STALECAST_PUBLISH_TOKEN: character 3") as caught:
        read_settings()
    assert "cret" not in str(caught.value).replace("secret of", "")


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    for name in Settings.model_fields:
        if name != "cors_allow_origins":
            monkeypatch.setenv(f"STALECAST_{name.upper()}", blank)
    assert read_settings() == Settings.model_construct()


def test_the_platforms_redis_is_found_behind_an_empty_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STALECAST_REDIS_URL", "")
    monkeypatch.setenv("REDIS_URL", "redis://platform\n")
    assert read_settings().redis_url == "redis://platform"


@pytest.mark.parametrize(("given", "level"), [("INFO", "info"), ("Warn", "warning"), (" ERROR\n", "error")])
def test_a_log_level_may_be_written_as_elsewhere(
    monkeypatch: pytest.MonkeyPatch, given: str, level: str
) -> None:
    monkeypatch.setenv("STALECAST_LOG_LEVEL", given)
    assert read_settings().log_level == level


# -- variables


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("STALECAST_MAX_CLIENT", "STALECAST_MAX_CLIENTS"),
        ("STALECAST_PUBLISH_TOKNE", "STALECAST_PUBLISH_TOKEN"),
        ("STALECAST_TOKEN", "STALECAST_PUBLISH_TOKEN"),
        ("STALECAST_HEARTBEAT", "STALECAST_HEARTBEAT_INTERVAL_S"),
        ("STALECAST_CORS_ORIGINS", "STALECAST_CORS_ALLOW_ORIGINS"),
        ("stalecast_log_levl", "STALECAST_LOG_LEVEL"),
        ("STALECAT_DRAIN_S", "STALECAST_DRAIN_S"),
        ("STALECAST_PORT", "PORT"),
        ("STALECAST_WORKERS", "WEB_CONCURRENCY"),
        ("STALECAST_", None),
        ("STALECAST_XYZ", None),
    ],
)
def test_a_misspelt_variable_is_named_with_what_was_meant(name: str, nearest: str | None) -> None:
    (found,) = unknown_variables({name: "1", "PATH": "/", "HOME": "/", "STAGE": "x"})
    assert (found.name, found.nearest) == (name, nearest)


def test_our_own_variables_are_known() -> None:
    names = [f"STALECAST_{name.upper()}" for name in Settings.model_fields]
    environment = dict.fromkeys(
        [*names, "REDIS_URL", "stalecast_max_clients", "STALECAST_LISTENER_FD", "STALECAST_URL"], "1"
    )
    assert list(unknown_variables(environment)) == []


def test_each_setting_that_cannot_be_used_is_named_and_no_value_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STALECAST_MAX_CLIENTS", "lots-of-them")
    monkeypatch.setenv("STALECAST_DRAIN_S", "-7.25")
    with pytest.raises(Misconfigured) as caught:
        read_settings()
    text = str(caught.value)
    assert "STALECAST_MAX_CLIENTS: " in text
    assert "STALECAST_DRAIN_S: " in text
    assert "lots-of-them" not in text
    assert "7.25" not in text


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
)
@pytest.mark.parametrize("value", ["1e300", "9" * 400])
def test_no_number_is_beyond_what_can_be_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """STALECAST_STUCK_TIMEOUT_S=1e9 was an OverflowError of the socket."""
    monkeypatch.setenv(f"STALECAST_{name.upper()}", value)
    with pytest.raises(Misconfigured, match=f"STALECAST_{name.upper()}: "):
        read_settings()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"publish_token": "short"}, "STALECAST_PUBLISH_TOKEN is shorter"),
        ({"publish_token": "0123456789abcdef"}, None),
        ({"heartbeat_interval_s": 56}, "STALECAST_HEARTBEAT_INTERVAL_S=56"),
        ({"retry_ms": 0}, "STALECAST_RETRY_MS=0"),
        ({"first_bytes_timeout_s": 5.0}, "STALECAST_REDIS_TIMEOUT_S=5"),
        ({"stream_maxlen": 100}, "STALECAST_WINDOW_LIMIT_EVENTS=256"),
        ({}, None),
    ],
)
def test_what_goes_together_badly_is_said_with_its_reason(
    changes: dict[str, object], words: str | None
) -> None:
    told = list(doubts(Settings(**changes)))
    assert len(told) == (words is not None)
    if words is not None:
        assert words in told[0]
    assert "short" not in "".join(told).replace("shorter", "")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "REDIS_URL is not set"),
        ({"REDIS_URL": "http://x"}, "REDIS_URL is not usable"),
        ({"REDIS_URL": "redis://h", "STALECAST_EVENTS_MODULE": "no.such"}, "STALECAST_EVENTS_MODULE"),
        ({"REDIS_URL": "redis://h", "STALECAST_DRAIN_S": "x"}, "STALECAST_DRAIN_S"),
        ({"REDIS_URL": "redis://h", "STALECAST_PUBLISH_TOKEN": "se\x01cret"}, "STALECAST_PUBLISH_TOKEN"),
    ],
)
def test_another_asgi_server_is_told_in_the_same_words(variables: dict[str, str], words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import app.asgi"],
        cwd=PROJECT, env={"PATH": os.environ["PATH"]} | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cret" not in ended.stderr


# -- the application's module


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('no')",
        "import sys; sys.exit(1)",
        "def register(registry): raise TypeError('no')",
        "def register(): pass",
        "register = 1",
        "syntax error",
    ],
)
def test_a_module_that_cannot_be_used_is_the_operators_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "own_events.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_events", raising=False)
    with pytest.raises(ValueError, match="own_events"):
        check(Settings(events_module="own_events"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"redis_url": "http://x"}, "REDIS_URL"), ({"events_module": "no.such"}, "STALECAST_EVENTS_MODULE")],
)
def test_what_a_worker_would_find_is_found_before_it_starts(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(Settings(**settings))
