"""NATS JetStream.

streams     the declared streams and consumers
connection  a service's connection, and publishing
pull        requests events and returns those that have arrived
consumer    delivers events to policies in batches; dead letters
"""
