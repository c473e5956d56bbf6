"""Kafka, OpenSearch, Milvus and the workers as processes of this machine, run by supervisord: no Docker needed."""
