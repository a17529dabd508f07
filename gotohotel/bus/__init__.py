"""NATS JetStream.

streams     the declared streams and consumers
connection  a service's connection, and publishing
pull        asks for events, and takes what has arrived
consumer    delivery of events to policies in batches, and dead letters
"""
