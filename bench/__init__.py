"""What GotoHotel costs: `make bench`.

__main__  the run and its report      load     closed-loop and paced orders through the gateway
pgbench   the same statements, bare   usage    CPU and memory by process
"""
