"""Waxwing and Synapse, unmodified and pinned, in one federation on loopback.

    scenario.py [STORY|vVERSION...]

Every story is told in each room version and from both sides. What the two servers then hold of each room is compared,
event by event. `scripts/interop.sh` sets up what this needs.
"""

import shutil
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apart
import around
import rooms
from letters import letters
from people import agree, step
from rooms import Story
from servers import Pair

VERSIONS = ("10", "11", "12")
# Stories told at once: more only wait for each other's processor.
AT_ONCE = 4


def told(tell, story: Story | list[Story] | Pair) -> bool:
    """Tells a story, in one room version or in all together; gives whether it went well."""
    name = story.name if isinstance(story, Story) else "all together"
    try:
        tell(story)
    except Exception:
        step(f"FAILED: {tell.__name__}, {name}\n{traceback.format_exc()}")
        return False
    step(f"{tell.__name__}, {name}")
    return True


def run(pair: Pair, wanted: set[str]) -> bool:
    both = (pair.synapse, pair.waxwing)
    stories = [
        Story(version, home, away)
        for version in VERSIONS
        for home, away in (both, both[::-1])
        if f"v{version}" in wanted or not any(w.startswith("v1") for w in wanted)
    ]
    names = {w for w in wanted if not w.startswith("v1")}
    chosen = lambda tell: not names or tell.__name__ in names
    together = [(tell, story) for tell in filter(chosen, rooms.STORIES + around.STORIES) for story in stories]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        good = list(pool.map(lambda chosen: told(*chosen), together))
    if chosen(letters):
        good.append(told(letters, pair))
    # These part the servers: nothing else may go on meanwhile.
    for tell in apart.STORIES:
        if chosen(tell):
            good.append(told(tell, stories))
    events = 0  # Whose history was compared, not only the state.
    for story in stories:
        for room, one, other, history in story.rooms:
            events += agree(room, one, other, history)
    count = sum(len(story.rooms) for story in stories)
    step(f"both servers agree about {count} rooms with {events} events")
    return all(good)


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="waxwing-interop-"))
    pair = Pair(folder)
    good = False
    try:
        pair.start()
        step(f"{pair.synapse.name} is Synapse, {pair.waxwing.name} is Waxwing")
        good = run(pair, set(sys.argv[1:]))
        pair.stop()
        step(pair.waxwing.audit())
    finally:
        for server in pair.both:
            if server.process is not None:
                server.process.kill()
        if good:
            shutil.rmtree(folder)
        else:
            for server in pair.both:
                print(f"-- the last lines of {server.folder / 'log'}\n{server.last_lines()}", file=sys.stderr)
    return 0 if good else 1


sys.exit(main())
