"""An executor that measures nothing: answers like the real ones and logs what it was told."""

import json
import sys
from pathlib import Path

speed, log, mode = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

with log.open("a") as out:
    for line in sys.stdin:
        command = json.loads(line)
        do, ids = command.pop("do"), command.pop("ids", [])
        out.write(json.dumps([do, len(ids), command]) + "\n")
        out.flush()
        if mode == "crash" and do == "feed":
            sys.stderr.write("first line\nthe tile configuration is damaged\n")
            sys.exit(3)
        if do == "save":
            Path(command["path"]).write_text("state")
        answer: dict[str, object] = {"seconds": len(ids) / speed}
        if do == "load":
            answer = {"seconds": 2.0, "engine": "fake 1"}
        elif do == "generate":
            answer = {"seconds": 2.0, "tokens": 2 * speed}
        print(json.dumps(answer), flush=True)
