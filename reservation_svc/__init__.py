"""The hotel's desk: owns reservations and the room catalogue.

server    RPCs in            service   use cases          domain   rules (pure)
policies  events in          store     SQL ↔ aggregate    wire     domain event → protobuf
clients   calls to pay_svc   __main__  puts it together
"""
