"""nftables rulesets, from the JSON or text of `nft list ruleset`."""

from ktp.parse.nft_json import parse_nft_json, table_names
from ktp.parse.nft_text import parse_nft_text

__all__ = ["parse_nft_json", "parse_nft_text", "table_names"]
