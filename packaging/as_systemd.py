#!/usr/bin/env python3
"""Runs a unit's command as systemd would, as far as thrifty.service needs it: with its environment and
limits, its state directory and a user of its own, until it ends. What it notifies goes to a file.

usage: as_systemd.py UNIT NOTIFIED PIDFILE WATCHDOG_SECONDS"""

import os
import resource
import shlex
import socket
import subprocess
import sys
import threading

# Of those that systemd gives to services with DynamicUser=.
USER = 61919

unit_file, notified, pid_file, watchdog = sys.argv[1:]
unit = {}
for line in open(unit_file):
    if "=" in line and not line.startswith("#"):
        key, _, value = line.strip().partition("=")
        unit.setdefault(key, []).append(value.replace("%S", "/var/lib"))

state = "/var/lib/" + unit["StateDirectory"][0]
os.makedirs(state, mode=int(unit["StateDirectoryMode"][0], 8), exist_ok=True)
os.chown(state, USER, USER)

environment = {"PATH": "/usr/bin:/bin", "STATE_DIRECTORY": state}
lines = unit["Environment"]
with open(unit["EnvironmentFile"][0].lstrip("-")) as file:
    lines += [line.strip() for line in file if line.strip() and not line.startswith("#")]
environment.update(line.partition("=")[::2] for line in lines)

path = notified + ".socket"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(path)
os.chmod(path, 0o666)
environment |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(int(float(watchdog) * 1e6))}

command = []
for word in shlex.split(unit["ExecStart"][0]):
    command += shlex.split(environment.get(word[1:], "")) if word.startswith("$") else [word]


def limit():
    os.umask(int(unit["UMask"][0], 8))
    files = int(unit["LimitNOFILE"][0])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = files if most == resource.RLIM_INFINITY else min(files, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def listen():
    with open(notified, "a", buffering=1) as log:
        while True:
            log.write(manager.recv(4096).decode())


threading.Thread(target=listen, daemon=True).start()
service = subprocess.Popen(
    command, env=environment, cwd="/", user=USER, group=USER, extra_groups=[], preexec_fn=limit
)
with open(pid_file, "w") as file:
    file.write(f"{service.pid}\n")
code = service.wait()
os.unlink(path)
sys.exit(code)
