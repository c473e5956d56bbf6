"""The stores behind three small ports: vectors in Milvus (`milvus`), text (`opensearch`) and manifests (`manifests`) in
OpenSearch.

The adapters are imported from their modules, since their clients take two seconds to import.
"""

from headrace.stores.filters import Filters, parse_filters
from headrace.stores.limits import check_attributes
from headrace.stores.ports import (
    Candidate,
    ManifestCount,
    ManifestStore,
    StoreCount,
    Stored,
    StoredRow,
    TextRow,
    TextStore,
    VectorRow,
    VectorStore,
)
from headrace.stores.settings import StoreSettings

__all__ = [
    "Candidate",
    "Filters",
    "ManifestCount",
    "ManifestStore",
    "StoreCount",
    "StoreSettings",
    "Stored",
    "StoredRow",
    "TextRow",
    "TextStore",
    "VectorRow",
    "VectorStore",
    "check_attributes",
    "parse_filters",
]
