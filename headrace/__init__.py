"""headrace: a Kafka stream-processing pipeline that turns a stream of documents into cited answers."""
