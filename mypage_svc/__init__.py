"""The customer center: shows a guest the state of a booking, and tells of every change. Built from events alone.

server    RPCs in
policies  events in
domain    how facts become a page, and which changes it has gone through (pure)
store     SQL
watches   who is told when a page has changed
jobs      sends the messages
kakao     the provider of messages, and their templates
"""
