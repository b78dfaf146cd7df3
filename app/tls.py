"""The server's certificate and key, looked at before anything is served.

OpenSSL says "PEM lib" to nearly every mistake, and asks a terminal for a passphrase; Hypercorn serves
cleartext when one of the two files is missing. So all is read here first, and what is wrong has a name.
"""

import binascii
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

CERTFILE_VARIABLE: Final = "STALECAST_TLS_CERTFILE"
KEYFILE_VARIABLE: Final = "STALECAST_TLS_KEYFILE"
_CERTIFICATE_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_KEY_MARK: Final = b"PRIVATE KEY-----"
# PKCS #8, and the older form that OpenSSL wrote before 1.0.
_ENCRYPTED_MARKS: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# A chain of ten is some 20 KB; what is larger is not a certificate.
_FILE_LIMIT_BYTES: Final = 1 << 20


class UnusableCertificate(Exception):
    """The files cannot be served with; the text names the variable and the remedy."""


def check_certificate(certfile: str | None, keyfile: str | None) -> bool:
    """Whether TLS is to be served. Raises UnusableCertificate."""
    if certfile is None and keyfile is None:
        return False
    if certfile is None or keyfile is None:
        given, missing = CERTFILE_VARIABLE, KEYFILE_VARIABLE
        if certfile is None:
            given, missing = missing, given
        raise UnusableCertificate(
            f"{given} is set, {missing} is not: TLS needs both (one file that holds both may be named "
            f"twice). Set {missing}, or unset {given} to serve cleartext behind a proxy"
        )
    certificate = _read(CERTFILE_VARIABLE, certfile)
    key = certificate if keyfile == certfile else _read(KEYFILE_VARIABLE, keyfile)
    if _CERTIFICATE_MARK not in certificate:
        if _KEY_MARK in certificate and _CERTIFICATE_MARK in key:
            raise UnusableCertificate(
                f"{CERTFILE_VARIABLE} names a key and {KEYFILE_VARIABLE} a certificate: swap the two"
            )
        raise UnusableCertificate(
            f"{CERTFILE_VARIABLE}={certfile} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); "
            "convert with `openssl x509 -inform DER` or `openssl pkcs12 -nokeys`"
        )
    if _KEY_MARK not in key:
        raise UnusableCertificate(
            f"{KEYFILE_VARIABLE}={keyfile} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----): "
            "name the file that was made together with the certificate"
        )
    if any(mark in key for mark in _ENCRYPTED_MARKS):
        raise UnusableCertificate(
            f"{KEYFILE_VARIABLE}={keyfile} is encrypted, and nobody is there to type its passphrase: write "
            "it without one (`openssl pkey -in KEY -out NEW`) and let only the server's user read it"
        )
    _load(certfile, keyfile)
    return True


def doubts_about(certfile: str, now: datetime) -> Iterator[str]:
    """What clients will refuse, though it can be served with. Nothing about a file that is not usable at all:
    `check_certificate` says what is wrong with that."""
    try:
        with Path(certfile).open("rb") as file:
            content = file.read(_FILE_LIMIT_BYTES)
    except (OSError, ValueError):
        return
    for number, found in enumerate(_CERTIFICATE.finditer(content), start=1):
        validity = read_validity(found[1])
        if validity is None or validity.begins <= now <= validity.ends:
            continue
        which = f"{CERTFILE_VARIABLE}={certfile}" + (f" (certificate {number} in it)" if number > 1 else "")
        if now > validity.ends:
            yield f"{which} has expired on {validity.ends:%Y-%m-%d %H:%M} UTC: clients refuse it; renew it"
        else:
            yield (
                f"{which} is not valid before {validity.begins:%Y-%m-%d %H:%M} UTC, and now it is "
                f"{now:%Y-%m-%d %H:%M}: clients refuse it until then; is this machine's clock right?"
            )


@dataclass(frozen=True, slots=True)
class Validity:
    """Both ends included, as RFC 5280 has it (4.1.2.5)."""

    begins: datetime
    ends: datetime


def read_validity(base64: bytes) -> Validity | None:
    """Of a certificate (RFC 5280, section 4.1: DER in base64). None for what is none. (The ssl module tells
    the dates of authorities and of peers only.)"""
    try:
        der = binascii.a2b_base64(base64)
        certificate = _enter(der, _SEQUENCE)
        signed = _enter(certificate, _SEQUENCE)
        if signed[0] == _VERSION:
            signed = _skip(signed)
        for _ in ("serial number", "signature algorithm", "issuer"):
            signed = _skip(signed)
        validity = _enter(signed, _SEQUENCE)
        return Validity(_time(validity), _time(_skip(validity)))
    except (ValueError, IndexError):
        return None


_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----")
# Tags of X.690: SEQUENCE, the explicit [0] of the version, UTCTime and GeneralizedTime.
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


def _element(der: bytes) -> tuple[int, int, int]:
    """Of the first one: its tag, and where its content begins and ends. Raises IndexError or ValueError."""
    tag, length, begin = der[0], der[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[2:begin])
    if begin + length > len(der):
        raise ValueError("cut off")
    return tag, begin, begin + length


def _enter(der: bytes, expected: int) -> bytes:
    tag, begin, end = _element(der)
    if tag != expected:
        raise ValueError(f"tag {tag}")
    return der[begin:end]


def _skip(der: bytes) -> bytes:
    return der[_element(der)[2] :]


def _time(der: bytes) -> datetime:
    tag, begin, end = _element(der)
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError(f"tag {tag}")
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _read(variable: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_FILE_LIMIT_BYTES)
    except IsADirectoryError:
        raise UnusableCertificate(f"{variable}={path} is a directory: name the file in it") from None
    except (OSError, ValueError) as error:
        remedy = "let the server's user read it" if isinstance(error, PermissionError) else "mend the path"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnusableCertificate(f"{variable}={path} cannot be read ({reason}): {remedy}") from None
    if not content.strip():
        raise UnusableCertificate(f"{variable}={path} is empty: was it written in full?")
    return content


def _load(certfile: str, keyfile: str) -> None:
    def no_passphrase() -> NoReturn:
        raise UnusableCertificate(f"{KEYFILE_VARIABLE}={keyfile} asks for a passphrase: write it without one")

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certfile, keyfile, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UnusableCertificate(
                f"the key in {KEYFILE_VARIABLE}={keyfile} is not that of the certificate in "
                f"{CERTFILE_VARIABLE}={certfile} (whose first one has to be the server's own, then the chain)"
            ) from None
        raise UnusableCertificate(
            f"{CERTFILE_VARIABLE}={certfile} and {KEYFILE_VARIABLE}={keyfile} cannot be used "
            f"({error.reason or error}): is one of them cut off, or made with an outdated method?"
        ) from None
    except (OSError, ValueError) as error:
        raise UnusableCertificate(
            f"{CERTFILE_VARIABLE}={certfile} and {KEYFILE_VARIABLE}={keyfile} cannot be used ({error})"
        ) from None
