"""Who is let in: which addresses need a login, where it is read from, and what a bad one is told."""

from pathlib import Path

import pytest

import app
from components import access
from steer_heal.config import SettingsError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "a.localhost"])
def test_an_address_of_this_machine_needs_no_login(host: str) -> None:
    access.check(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.4", "8.8.8.8", "example.org", "localhost.evil.org"]
)
def test_an_address_that_others_reach_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match=access.LOGIN):
        access.check(host, None)
    access.check(host, ("me", "long enough"))


def test_a_share_link_needs_one() -> None:
    with pytest.raises(SettingsError, match="share link needs a login"):
        access.check("127.0.0.1", None, share=True)
    access.check("127.0.0.1", ("me", "long enough"), share=True)


def test_it_is_read_from_the_environment_and_taken_out_of_it() -> None:
    environment = {access.LOGIN: "me:pass:with:colons", "OTHER": "stays"}
    assert access.login(environment) == ("me", "pass:with:colons")
    assert environment == {"OTHER": "stays"}
    assert access.login(environment) is None


def test_a_file_goes_before_the_environment_and_its_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file:0123456789\n", encoding="utf-8-sig")
    (tmp_path / "b").write_text("named:0123456789")
    environment = {access.LOGIN: "said:0123456789", access.LOGIN_FILE: str(tmp_path / "b")}
    assert access.login(dict(environment), tmp_path / "a") == ("file", "0123456789")
    assert access.login(dict(environment)) == ("named", "0123456789")


@pytest.mark.parametrize("bad", ["", "nobody", ":password", "me:", "me:short"])
def test_a_bad_one_is_refused_without_repeating_it(bad: str) -> None:
    with pytest.raises(SettingsError, match="name:password") as refused:
        access.login({access.LOGIN: bad})
    assert "short" not in str(refused.value).replace("shorter", "")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Cannot read the login"):
        access.login({}, tmp_path / "none")


def test_the_app_refuses_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(access.LOGIN, raising=False)
    monkeypatch.delenv(access.LOGIN_FILE, raising=False)
    monkeypatch.setattr(app, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert app.main(["--model", "demo", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert app.main(["--model", "demo", "--share", "--port", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [access.LOGIN in line for line in said] == [True, True]
