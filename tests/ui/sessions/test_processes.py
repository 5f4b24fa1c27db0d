"""Several processes at one store, and processes that die."""

from __future__ import annotations

import signal

from ui.sessions import SessionStore

WRITER = """
store = SessionStore.open(path)
session = store.create("chat")
question = store.add(session.id, None, "user", "Count.")
answer = store.add(session.id, question.id, "assistant", "")
say(answer.id)
for number in range(100_000):
    store.append(answer.id, f"{number} ")
    say(number)
"""


def test_a_killed_writer_loses_nothing(path, start):
    writer = start(WRITER)
    message = int(writer.stdout.readline())
    for _ in range(200):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    last = int(([199, *writer.stdout.read().splitlines()])[-1])
    with SessionStore.open(path) as store:
        kept = store.message(message)
        numbers = [int(word) for word in kept.content.split()]
        # What it was just appending when it died may be there too.
        assert numbers in (list(range(last + 1)), list(range(last + 2)))
        assert kept.finish_reason == "interrupted"
        assert store.latest().leaf == message
        assert store.search("199")[0].message == kept
        assert store.recover() == 0
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]


def test_an_answer_that_is_being_written_is_left_alone(path, start):
    writer = start(WRITER + "    sys.stdin.readline()\n")
    message = int(writer.stdout.readline())
    writer.stdout.readline()
    with SessionStore.open(path) as store:
        assert store.recover() == 0
        assert store.message(message).unfinished
        assert store.message(message).content == "0 "
        writer.stdin.write("\n")
        writer.stdin.flush()
        writer.stdout.readline()
        assert store.message(message).content == "0 1 "
        mine = store.add(store.create("mine").id, None, "assistant", "")
        writer.kill()
        writer.wait()
        assert store.recover() == 1
        assert store.message(message).finish_reason == "interrupted"
        assert store.message(mine.id).unfinished


def test_a_writer_that_died_before_it_wrote_leaves_nothing_behind(path, start):
    writer = start(WRITER.replace("say(answer.id)", "store.finish(answer.id, 'stop', None); say(answer.id)"))
    message = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    with SessionStore.open(path) as store:
        assert store.message(message).finish_reason == "stop"
        assert [file.name for file in path.parent.iterdir() if "writer" in file.name] == []


def test_many_may_begin_and_write_at_once(path, start):
    script = """
sys.stdin.readline()
store = SessionStore.open(path)
session = store.create(f"of {os.getpid()}")
parent = None
for number in range(30):
    parent = store.add(session.id, parent, "user", str(number)).id
    store.append(parent, "!")
    store.sessions()
store.close()
say("done")
"""
    processes = [start(script) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["done\n"] * 4
    with SessionStore.open(path) as store:
        sessions = store.sessions()
        assert {session.title for session in sessions} == {f"of {process.pid}" for process in processes}
        for session in sessions:
            assert [message.content for message in store.path(session.leaf)] == [f"{n}!" for n in range(30)]


def test_a_session_deleted_by_another_process_is_said_to_be_gone(store, start):
    session = store.create()
    message = store.add(session.id, None, "assistant", "")
    other = start(
        f"""
from offload.errors import SessionNotFound
store = SessionStore.open(path)
store.delete({session.id})
for attempt in (lambda: store.append({message.id}, "x"), lambda: store.finish({message.id}, "stop", None)):
    try:
        attempt()
    except SessionNotFound as error:
        say(error.message)
"""
    )
    assert other.communicate()[0] == f"no message {message.id}\n" * 2
    assert store.sessions() == []
