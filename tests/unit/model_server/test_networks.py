import pytest

from model_server.networks import Networks
from model_server.settings import SettingsError


@pytest.mark.parametrize(
    ("setting", "inside", "outside"),
    [
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
        ("192.0.2.1, 10.0.0.0/8", "10.0.0.1", "192.0.2.2"),
        ("fd00::/8", "fd12::1", "fe80::1"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
        ("localhost", "127.0.0.1", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", ""),
        ("10.0.0.0/8", "10.0.0.1", "unix:"),
    ],
)
def test_address_is_inside_or_outside(setting: str, inside: str, outside: str) -> None:
    networks = Networks(setting, "internal_pages_from")

    assert inside in networks
    assert outside not in networks


def test_nothing_is_no_network() -> None:
    assert not Networks("", "internal_pages_from")
    assert Networks("10.0.0.0/8", "internal_pages_from")


def test_text_has_addresses_without_a_length() -> None:
    written = str(Networks("127.0.0.1,::1,10.1.2.3/8", "trusted_proxies"))

    assert written == "127.0.0.1,::1,10.0.0.0/8,::ffff:7f00:1,::ffff:a00:0/104"


def test_unknown_name_is_told() -> None:
    with pytest.raises(SettingsError, match=r"^MODEL_SERVER_TRUSTED_PROXIES has 'no\.such\.host\.invalid', which is"):
        Networks("10.0.0.0/8,no.such.host.invalid", "trusted_proxies")
