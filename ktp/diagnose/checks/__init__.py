"""The checks: one cause a file, all of them listed here in the order in which they are asked.

Causes in the API objects come first, then the nodes, then kube-proxy's rules: a cell is explained by the first check
that mends it.
"""

from __future__ import annotations

from ktp.diagnose.checks import (
    ktp101_no_usable_endpoint,
    ktp102_no_ready_pod,
    ktp103_selector_matches_nothing,
    ktp201_forwarding_off,
    ktp202_loopback_not_routed,
    ktp203_reverse_path_filter,
    ktp301_rule_stops_traffic,
    ktp302_forward_policy_drop,
    ktp401_rules_disagree,
    ktp402_both_backends,
    ktp404_missing_jump,
    ktp405_foreign_translation,
    ktp501_no_local_endpoint,
    ktp502_internal_policy_no_local_endpoint,
    ktp503_uneven_load,
    ktp504_node_sees_other_answer,
    ktp505_answer_by_other_way,
    ktp601_source_ranges,
    ktp901_unexplained,
)
from ktp.diagnose.checks.base import HEADINGS, Check

ALL_CHECKS: tuple[Check, ...] = (
    ktp103_selector_matches_nothing.CHECK,
    ktp102_no_ready_pod.CHECK,
    ktp101_no_usable_endpoint.CHECK,
    ktp501_no_local_endpoint.CHECK,
    ktp502_internal_policy_no_local_endpoint.CHECK,
    ktp601_source_ranges.CHECK,
    ktp201_forwarding_off.CHECK,
    ktp203_reverse_path_filter.CHECK,
    ktp202_loopback_not_routed.CHECK,
    ktp302_forward_policy_drop.CHECK,
    ktp404_missing_jump.CHECK,
    ktp402_both_backends.CHECK,
    ktp405_foreign_translation.CHECK,
    ktp301_rule_stops_traffic.CHECK,
    ktp401_rules_disagree.CHECK,
    ktp505_answer_by_other_way.CHECK,
    ktp503_uneven_load.CHECK,
    ktp504_node_sees_other_answer.CHECK,
    ktp901_unexplained.CHECK,
)

__all__ = ["ALL_CHECKS", "HEADINGS", "Check"]
