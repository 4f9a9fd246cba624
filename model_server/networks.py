"""Who is meant by a list of networks, addresses and names of hosts."""

import ipaddress
import socket
from typing import List, Union

from model_server.settings import PREFIX, SettingsError

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class Networks:
    """The networks of a setting. Names are looked up once."""

    def __init__(self, setting: str, field: str) -> None:
        """Read entries with commas between them; `field` is the setting's name.

        Raises:
            SettingsError: an entry is neither a network nor an address, nor the name of a host that is known.
        """
        self._networks: List[Network] = []
        for entry in filter(None, map(str.strip, setting.split(","))):
            self._networks += _networks(entry, PREFIX + field.upper())

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: object) -> bool:
        """Tell whether the address of a client, as text, belongs to them."""
        try:
            parsed = ipaddress.ip_address(str(address))
        except ValueError:
            return False
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any((mapped or parsed) in network for network in self._networks)

    def __str__(self) -> str:
        """Return them with commas between them, those of IPv4 also as a socket of IPv6 writes them.

        A single address has no length.
        """
        ipv4 = [network for network in self._networks if network.version == 4]
        mapped = [ipaddress.ip_network(f"::ffff:{net.network_address}/{96 + net.prefixlen}") for net in ipv4]
        networks: List[Network] = [*self._networks, *mapped]
        return ",".join(str(net.network_address if net.num_addresses == 1 else net) for net in networks)


def _networks(entry: str, variable: str) -> List[Network]:
    try:
        return [ipaddress.ip_network(entry, strict=False)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(entry, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise SettingsError(
            f"{variable} has '{entry}', which is neither a network nor an address, and no host of this name is known."
        ) from None
    return [ipaddress.ip_network(address) for address in sorted({str(each[4][0]).partition("%")[0] for each in found})]
