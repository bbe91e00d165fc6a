"""Step 2: devices and partners, each a process with its own state folder, enrolled with one-time tokens."""

from rich.progress import Progress

from covey_server.demo.actors import program
from covey_server.demo.cable import Cable
from covey_server.demo.stage import Stage, quiet_environment


def enrol(stage: Stage) -> None:
    """Split the data, invite, enrol and start every participant, and wait until all are online."""
    _split_data(stage)
    stage.cable = Cable(("127.0.0.1", stage.broker_port))
    with stage.narrator.progress() as progress:
        bar = progress.add_task("enrolling", total=len(stage.participants), note="")
        for participant in stage.participants:
            _enrol_one(stage, participant, progress)
            progress.update(bar, advance=1, note=participant)
        bar = progress.add_task("online", total=len(stage.participants), note="")

        def online() -> bool:
            devices = [stage.call().get(f"/devices/{participant}") for participant in stage.participants]
            count = sum(device["presence"] == "online" and bool(device["reported"]) for device in devices)
            progress.update(bar, completed=count)
            return bool(count == len(stage.participants))

        stage.wait("all participants are online by mTLS", online, timeout_s=90)
    stage.narrator.good(
        f"{len(stage.devices)} devices and {len(stage.partners)} partners enrolled: key and CSR made on the device, token used once"
    )


def _split_data(stage: Stage) -> None:
    sizes = stage.troupe.call(
        "splitting the data",
        [
            program("python"),
            str(stage.example("digits", "shares.py")),
            "--out",
            str(stage.work_dir / "data"),
            "--seed",
            str(stage.options.seed),
            "--participants",
            *stage.participants,
        ],
        timeout_s=120,
    )
    stage.narrator.line(
        "real handwritten digits (MNIST, shipped inside a pip package), split unevenly; each participant reads only its own file"
    )
    for line in sizes.strip().splitlines():
        stage.narrator.line(f"[dim]{line}[/dim]")


def _enrol_one(stage: Stage, participant: str, progress: Progress) -> None:
    profile = "device" if participant in stage.devices else "partner"
    invitation = stage.call().post("/invitations", {"device": participant, "profile": profile, "labels": {"site": "demo"}})
    state_dir = str(stage.state_dir(participant))
    agent = program("covey-agent")
    stage.troupe.call(
        f"enrolling {participant}",
        [agent, "enroll", "--token", invitation["token"], "--state-dir", state_dir, "--profile", profile],
        timeout_s=60,
    )
    stage.troupe.call("data add", [agent, "data", "add", "digits", str(stage.share(participant)), "--state-dir", state_dir], timeout_s=30)
    task = str(stage.example("digits", "task.py"))
    stage.troupe.call("policy allow-task", [agent, "policy", "allow-task", task, "--state-dir", state_dir], timeout_s=30)
    environment = quiet_environment()
    if participant == stage.cut_off_device and stage.cable is not None:
        environment["COVEY_AGENT_BROKER_PORT"] = str(stage.cable.port)
    stage.troupe.start(participant, [agent, "run", "--state-dir", state_dir], env=environment)
    progress.refresh()
