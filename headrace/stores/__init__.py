"""The stores: vectors in Milvus, text and manifests in OpenSearch, behind three small ports."""

from headrace.stores.filters import Filters, parse_filters
from headrace.stores.limits import check_attributes
from headrace.stores.manifests import OpenSearchManifestStore
from headrace.stores.milvus import MilvusStore
from headrace.stores.opensearch import OpenSearchTextStore
from headrace.stores.ports import (
    Candidate,
    ManifestCount,
    ManifestStore,
    StoreCount,
    Stored,
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
    "MilvusStore",
    "OpenSearchManifestStore",
    "OpenSearchTextStore",
    "StoreCount",
    "StoreSettings",
    "Stored",
    "TextRow",
    "TextStore",
    "VectorRow",
    "VectorStore",
    "check_attributes",
    "parse_filters",
]
