"""The checks: one cause a file, all of them listed here in the order in which they are asked.

Causes in the API objects that leave a port without any endpoint come first; then what is broken on a node, from the
kernel's switches to kube-proxy's rules, for that breaks the Service for everybody; then what its policies mean; then
what is good to know. A cell is explained by the first check that mends it, and findings of one severity are shown in
this order.
"""

from __future__ import annotations

from importlib import import_module

from ktp.diagnose.checks.base import HEADINGS, Check

_FILES = (
    "ktp103_selector_matches_nothing",
    "ktp102_no_ready_pod",
    "ktp104_target_port_name_missing",
    "ktp105_slice_port_mismatch",
    "ktp110_one_family_only",
    "ktp112_only_terminating",
    "ktp101_no_usable_endpoint",
    "ktp111_other_proxy",
    "ktp408_mark_drop_missing",
    "ktp406_wrong_node_name",
    "ktp407_no_kube_proxy_rules",
    "ktp201_forwarding_off",
    "ktp203_reverse_path_filter",
    "ktp214_tunnel_broken",
    "ktp215_accept_queue_full",
    "ktp216_conntrack_full",
    "ktp217_pods_of_other_nodes",
    "ktp218_stale_entry",
    "ktp219_drops_counted",
    "ktp221_strict_window",
    "ktp220_too_long",
    "ktp222_sender_not_told",
    "ktp223_ports_used_up",
    "ktp209_pod_route_missing",
    "ktp210_bridge_netfilter_off",
    "ktp211_ipvs_conntrack_off",
    "ktp212_nothing_listens",
    "ktp213_pod_network",
    "ktp113_target_port_undeclared",
    "ktp303_not_tracked",
    "ktp302_forward_policy_drop",
    "ktp404_missing_jump",
    "ktp410_broken_chain",
    "ktp402_both_backends",
    "ktp207_node_port_addresses",
    "ktp206_host_port_takes_port",
    "ktp405_foreign_translation",
    "ktp301_rule_stops_traffic",
    "ktp304_cilium_policy",
    "ktp305_network_policy",
    "ktp205_other_process_listens",
    "ktp401_rules_disagree",
    "ktp413_cilium_maps_disagree",
    "ktp603_health_check_blocked",
    "ktp106_endpoint_without_node",
    "ktp107_endpoint_on_unknown_node",
    "ktp501_no_local_endpoint",
    "ktp502_internal_policy_no_local_endpoint",
    "ktp604_node_excluded",
    "ktp601_source_ranges",
    "ktp505_answer_by_other_way",
    "ktp506_source_lost",
    "ktp503_uneven_load",
    "ktp108_slices_disagree",
    "ktp109_not_ready_published",
    "ktp204_port_in_ephemeral_range",
    "ktp208_node_not_ready",
    "ktp403_no_kube_proxy_data_plane",
    "ktp409_quiet_drift",
    "ktp602_health_check_port_missing",
    "ktp605_ingress_not_programmed",
    "ktp607_load_balancer_pending",
    "ktp608_not_announced",
    "ktp606_provider_annotations",
    "ktp507_local_without_effect",
    "ktp202_loopback_not_routed",
    "ktp504_node_sees_other_answer",
    "ktp412_left_alone",
    "ktp411_large_cluster",
    "ktp901_unexplained",
    "ktp902_probe_disagrees",
)
ALL_CHECKS: tuple[Check, ...] = tuple(import_module(f"{__name__}.{name}").CHECK for name in _FILES)

__all__ = ["ALL_CHECKS", "HEADINGS", "Check"]
