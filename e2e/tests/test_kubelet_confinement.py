"""Static pods of a real kubelet: the users that are their own, and the limits they meet."""

from __future__ import annotations

import json
from functools import partial

from e2e.harness.kubelet import LIMIT, NODE, Kubelet
from e2e.harness.refs import NGINX
from e2e.harness.static_pods import container, host_path, limits, pod, probe, run
from e2e.harness.waiting import until


def test_users_that_are_the_pods_own(node: Kubelet) -> None:
    """A pod with `hostUsers: false`: the mappings are those that the kubelet chose, volumes of all
    kinds have their owners, and what the kubelet does in and with a pod works as in any other."""
    here = node.shared("mapped")
    (here / "theirs").write_text("of the host's root\n")
    (here / "theirs").chmod(0o600)
    mounts = {"disk": "/disk", "memory": "/memory", "told": "/told", "here": "/here"}
    name = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    node.run(
        pod(
            "mapped",
            container(
                "root",
                "echo up > /here/made; until [ -e /disk/stop ]; do sleep 0.1; done; "
                "rm /disk/stop; echo told > /dev/termination-log; exit 6",
                mounts={**mounts, "image": "/image"},
                readinessProbe=probe(run("[ -e /here/made ]")),
                lifecycle={"postStart": run("echo hook > /disk/hook")},
            ),
            container(
                "app", mounts=mounts, securityContext={"runAsUser": 1000, "procMount": "Unmasked"}
            ),
            hostUsers=False,
            securityContext={"fsGroup": 2000, "supplementalGroups": [3000]},
            volumes=[
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "told", "downwardAPI": {"items": [name], "defaultMode": 0o440}},
                {"name": "image", "image": {"reference": NGINX}},
                host_path("here", here),
            ],
        ),
        pod("usual", container("main")),
    )
    node.ready("mapped", "usual")
    uid = node.pod("mapped")["metadata"]["uid"]
    chosen = json.loads((node.root / "pods" / uid / "userns").read_text())

    def says(script: str, who: str = "root") -> str:
        return node.sh("mapped", who, script)

    for kind in ("uid", "gid"):
        told = [
            [each["containerId"], each["hostId"], each["length"]]
            for each in chosen[f"{kind}Mappings"]
        ]
        assert told == [[0, told[0][1], 65536]]
        assert told[0][1] >= 65536
        for who in ("root", "app"):
            lines = says(f"cat /proc/self/{kind}_map", who).splitlines()
            assert [[int(n) for n in line.split()] for line in lines] == told
    assert node.sh("usual", "main", "cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]

    assert says("id -u; id -G").split() == ["0", "0", "2000", "3000"]
    assert says("cat /here/theirs /disk/hook") == "of the host's root\nhook"
    assert says("(cat /here/theirs) 2>&1 || true", "app").lower().endswith("permission denied")
    assert says("grep -c mapped- /etc/hosts; hostname") == f"1\nmapped-{NODE}"
    hidden = "grep -c ' /proc/keys ' /proc/mounts || true"
    assert (says(hidden), says(hidden, "app")) == ("1", "0")
    # The group of the pod's volumes has them, whoever of the pod it is.
    says("echo a > /disk/app; echo a > /memory/app; echo a > /here/app", "app")
    assert says("cat /told/name", "app") == f"mapped-{NODE}"
    shown = "stat -c '%u %g' /disk/app /memory/app /here/app /here/made /image/etc"
    assert says(shown).splitlines() == ["1000 2000", "1000 2000", "1000 1000", "0 0", "0 0"]
    found = {each: (here / each).stat().st_uid for each in ("app", "made")}
    assert found == {"app": 1000, "made": 0}

    says("touch /disk/stop")
    until("it is back", lambda: node.container("mapped", "root")["restartCount"] == 1, LIMIT)
    last = node.last_end("mapped", "root")
    assert (last["exitCode"], last["message"]) == (6, "told\n")
    node.ready("mapped")
    assert says("cat /disk/app /memory/app") == "a\na"


def test_limits_and_who_exceeds_them(node: Kubelet) -> None:
    here = node.shared("limits")
    greedy = "until [ -e /limits/go ]; do sleep 0.1; done; rm /limits/go; exec tail /dev/zero"
    node.run(
        pod(
            "limits",
            container(
                "greedy", greedy, mounts={"limits": "/limits"}, resources=limits("48Mi", "500m")
            ),
            container("steady", resources=limits("32Mi", "250m")),
            # As admission takes it from manifests/runtimeclass.yaml.
            overhead={"memory": "320Mi", "cpu": "250m"},
            volumes=[host_path("limits", here)],
        ),
        pod(
            "free",
            container("greedy", "exec tail /dev/zero", resources={"limits": {"memory": "40Mi"}}),
            container("steady"),
        ),
    )
    node.ready("limits")
    assert node.status("limits")["qosClass"] == "Guaranteed"
    script = "cd /sys/fs/cgroup && cat memory.max cpu.max"
    assert node.sh("limits", "greedy", script) == f"{48 << 20}\n50000 100000"
    assert node.sh("limits", "steady", script) == f"{32 << 20}\n25000 100000"
    resources = node.container("limits", "steady")["resources"]
    assert resources["limits"] == {"cpu": "250m", "memory": "32Mi"}
    (here / "go").touch()
    for name in ("limits", "free"):
        last = until(
            f"the kernel kills in {name}",
            partial(node.last_end, name, "greedy"),
            LIMIT,
            pause=0.1,
        )
        assert (last["reason"], last["exitCode"]) == ("OOMKilled", 137)
        assert node.container(name, "steady")["restartCount"] == 0
    node.ready("limits")
    assert node.container("limits", "greedy")["restartCount"] == 1
