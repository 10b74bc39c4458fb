"""The rules that every container has."""

from __future__ import annotations

from hostlib.devices import default_rules


def test_all_is_denied_first_and_lists_are_the_callers_own() -> None:
    rules = default_rules()
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 136, "access": "rwm"} in rules
    opened = [rule for rule in rules[1:] if rule["access"] != "m"]
    assert all("major" in rule and rule["type"] == "c" for rule in opened)
    rules.clear()
    assert default_rules()
