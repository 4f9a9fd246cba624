"""Strategy of all plays: Ansible's own `linear`, through Mitogen where the controller has it.

Mitogen keeps one interpreter on each host, where Ansible starts one for each task: a deployment that changes nothing
takes less than half the time. `ANSIBLE_STRATEGY=linear` goes without it.
"""

from __future__ import annotations

from ansible.plugins.strategy.linear import StrategyModule as Linear

try:
    import ansible_mitogen.loaders
    import ansible_mitogen.strategy
except ImportError:

    class StrategyModule(Linear):
        """Ansible's own, because Mitogen is not installed."""

else:

    class StrategyModule(
        ansible_mitogen.strategy.StrategyMixin, ansible_mitogen.loaders.strategy_loader.get("linear", class_only=True)
    ):
        """Mitogen's form of it."""
