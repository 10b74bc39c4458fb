"""The main job: an image from a registry runs in a thawed microVM and is reached over HTTP."""

from __future__ import annotations

import json
import re

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until


def test_nginx_from_the_registry_serves_its_page(daemon: Daemon) -> None:
    client = daemon.client
    image_id = client.pull_image(NGINX)
    image = client.image_status(NGINX)
    assert image is not None
    assert image.id == image_id
    assert image.size > 0

    pod = Pod.run(daemon)
    assert pod.state == v1_pb2.SANDBOX_READY
    web = pod.create(NGINX)
    assert web.status().state == v1_pb2.CONTAINER_CREATED
    client.start_container(web.id)
    assert pod.get().text == PAGE

    until("the request is in the log", lambda: '"GET / HTTP/1.1" 200' in web.output())
    done = client.exec_sync(web.id, ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)

    status = web.status()
    assert status.state == v1_pb2.CONTAINER_RUNNING
    assert status.image_id == status.image_ref == image_id
    assert 0 < status.created_at <= status.started_at

    client.stop_container(web.id, 20)
    status = web.status()
    assert status.state == v1_pb2.CONTAINER_EXITED
    assert status.exit_code == 0
    assert status.reason == "Completed"
    client.stop_pod(pod.id)
    assert pod.state == v1_pb2.SANDBOX_NOTREADY
    client.remove_pod(pod.id)
    assert not client.pods()


def test_the_python_application_answers(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    app = pod.start(WEBAPP, env={"GREETING": "CRI"})
    answer = pod.get(8080).json()
    assert answer["hello"] == "CRI"
    assert answer["host"] == pod.config.hostname
    assert app.sh("id -un") == "app"
    pod.remove()


def test_whiteouts_hide_what_lower_layers_have(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    web = pod.start(NGINX)
    assert web.sh("ls /var/www/html") == "index.html"
    assert "removed.html" not in web.sh("ls -A /usr/share/nginx/html").split()
    assert pod.get(path="/removed").status_code == 404
    assert web.sh("find / -xdev -name '.wh.*'") == ""


def test_a_command_that_ends_leaves_its_exit_code_and_output(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    done = pod.start(SHELL, ["/bin/sh", "-c", "echo one; echo two >&2; printf three; exit 7"])
    status = done.wait()
    assert status.exit_code == 7
    assert status.reason == "Error"
    until("the whole output is in the log", lambda: done.output() == "one\nthree")
    assert done.output("stderr") == "two\n"


def test_long_lines_are_split_and_nothing_is_lost(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo; seq 1 5000"
    done = pod.start(SHELL, ["/bin/sh", "-c", script])
    done.wait()
    expected = "x" * 100000 + "\n" + "".join(f"{n}\n" for n in range(1, 5001))
    until("the whole output is in the log", lambda: done.output() == expected)
    assert max(len(line) for line in done.log_file.read_bytes().split(b"\n")) < 16 * 1024 + 64


def test_log_rotation_as_the_kubelet_does_it(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    talker = pod.start(
        SHELL, ["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"]
    )
    until("something is logged", lambda: talker.output().count("\n") > 3)
    rotated = talker.log_file.with_suffix(".log.1")
    talker.log_file.rename(rotated)
    daemon.client.runtime(
        "ReopenContainerLog",
        v1_pb2.ReopenContainerLogRequest(container_id=talker.id),
        v1_pb2.ReopenContainerLogResponse,
    )
    until("the new file is written", lambda: talker.output().count("\n") > 3)
    old = [line.split(" ", 3)[3] for line in rotated.read_text().splitlines()]
    new = talker.output().split()
    assert [*old, *new] == [str(n) for n in range(1, len(old) + len(new) + 1)]


def test_pods_reach_each_other_and_the_host_reaches_them(daemon: Daemon) -> None:
    server, other = Pod.run(daemon), Pod.run(daemon)
    server.start(NGINX)
    server.get()
    peer = other.start(SHELL, SLEEP)
    assert peer.sh(f"wget -qO- http://{server.ip}/") == PAGE.strip()


def test_devices_are_denied_unless_privileged(daemon: Daemon) -> None:
    sandbox = v1_pb2.LinuxSandboxSecurityContext(privileged=True)
    pod = Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=sandbox))
    disk = "mknod /dev/disk b 8 0 && head -c 1 /dev/disk | wc -c"
    for privileged, read in ((False, "0"), (True, "1")):
        context = v1_pb2.LinuxContainerSecurityContext(privileged=privileged)
        container = pod.start(
            SHELL,
            SLEEP,
            name=f"privileged-{privileged}".lower(),
            linux=v1_pb2.LinuxContainerConfig(security_context=context),
        )
        assert container.sh(disk) == read
        assert len(container.sh("cat /run/thaw/generation")) == 36
        assert container.sh("head -c 3 /dev/urandom | wc -c") == "3"


def test_crictl_drives_a_pod_from_pull_to_removal(
    daemon: Daemon, crictl: Crictl, registry: Registry
) -> None:
    assert re.search(r"^RuntimeName: +thaw$", crictl.out("version"), re.MULTILINE)
    crictl.run("pull", NGINX)
    names = [name for image in crictl.json("images")["images"] for name in image["repoTags"]]
    assert NGINX in names
    logs = daemon.logs / "crictl"
    sandbox = crictl.write(
        "sandbox.json",
        {
            "metadata": {"name": "crictl", "uid": "u1", "namespace": "e2e"},
            "hostname": "crictl",
            "log_directory": str(logs),
            "linux": {},
        },
    )
    container = crictl.write(
        "container.json",
        {
            "metadata": {"name": "web"},
            "image": {"image": NGINX},
            "log_path": "web.log",
            "linux": {},
        },
    )
    pod_id = crictl.out("runp", sandbox)
    container_id = crictl.out("create", pod_id, container, sandbox)
    crictl.run("start", container_id)
    address = json.loads(crictl.out("inspectp", pod_id))["status"]["network"]["ip"]
    assert Pod(daemon, pod_id, v1_pb2.PodSandboxConfig()).get().text == PAGE
    assert address
    assert crictl.out("exec", "--sync", container_id, "/bin/hostname") == "crictl"
    until("the request is in the log", lambda: "200" in crictl.out("logs", container_id))
    assert json.loads(crictl.out("inspect", container_id))["status"]["state"] == "CONTAINER_RUNNING"
    assert [item["id"] for item in crictl.json("ps")["containers"]] == [container_id]
    crictl.run("stop", container_id)
    crictl.run("rm", container_id)
    crictl.run("stopp", pod_id)
    crictl.run("rmp", pod_id)
    assert crictl.out("pods", "--quiet") == ""
