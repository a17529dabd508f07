"""Sells rooms: owns orders and the allotment of rooms per night.

server    RPCs in            service   use cases          domain   rules (pure)
policies  events in          store     SQL ↔ aggregate    wire     domain event → protobuf
clients   calls to pay_svc   __main__  puts it together
"""
