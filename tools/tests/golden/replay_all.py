"""Replays a corpus with its own replay.py, and prints what came of each step.

replay_all.py CORPUS PROGRAMS TOOLS JOBS

The corpus' program decides what is right; what it does slowly is done faster here: its processes
start without a copy of this one, a file that nobody touched is not read again, and the cases run
side by side, the long ones first. A line for each result:

    +\tCASE\tSTEP\tASPECT      as the reference
    -\tCASE\tSTEP\tASPECT\tCOMMAND\tDIFFERENCES, as JSON
    #\tTEXT                  for a person

An aspect is `result` (exit status and output), `state` (what the files mean), `size` (they need no
more than the reference's), `alive` (it did not crash where the reference is wrong), `unchanged`
(no file changed in a case that only reads; its step is `-`).
"""
import json, os, subprocess, sys, traceback
from multiprocessing import Pool

corpus, programs, tools, jobs = sys.argv[1:5]
sys.path.insert(0, corpus)
import replay

ASPECTS = {
    '(reference_bug: must only not crash)': 'alive',
    '(read-only commands leave all files unchanged)': 'unchanged',
    '(files need at most 4 KiB more than those of the reference)': 'size',
    '(replay error)': 'replay',
}


class Options:
    """As replay.py's command line would say."""
    keep = form = None
    tap = tapdisk = strict = False
    envd = {}
    tools = tools.split(',')


def run_limited(cmd, cwd, stdin, env, timeout):
    """As replay.py's, without forking this process; a program that does not end is killed."""
    process = subprocess.Popen(cmd, cwd=cwd, env=env, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(stdin, timeout)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return 'timeout', out[:4096], err


class Seen:
    """What files were found to mean, while nobody touched them."""

    def __init__(self, root, uuids):
        self.root, self.uuids, self.known, self.stamps = root, uuids, {}, {}

    def state(self):
        paths = {}
        for directory, directories, names in os.walk(self.root):
            directories.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                paths[os.path.relpath(path, self.root)] = path
        touched = {name for name, path in paths.items() if self.is_touched(path)}
        stamps = {name: self.stamp(path) for name, path in paths.items()}
        touched |= {name for name in paths if stamps[name] != self.stamps.get(name)}
        is_same = not touched and len(stamps) == len(self.stamps)
        known = {}
        for name, path in paths.items():
            if name in touched or not is_same and self.has_parent(path):
                state, layout = replay.file_state(path, self.uuids)
                known[name] = dict(state=state, layout=layout)
            else:
                known[name] = self.known[name]
        self.known, self.stamps = known, stamps
        return known

    @staticmethod
    def has_parent(path):
        """Then it means what its parent does, too."""
        try:
            with open(path, 'rb') as file:
                copy = file.read(64)
                file.seek(max(0, os.fstat(file.fileno()).st_size - 512))
                return b'\0\0\0\4' in (copy[60:64], file.read(64)[60:64])
        except OSError: return True

    @staticmethod
    def is_touched(path):
        """Its time is put to a whole second, which is what images store of times; whoever writes
        it makes it another one again."""
        if os.path.islink(path): return False
        it = os.stat(path)
        second = it.st_mtime_ns // 10**9 * 10**9
        if it.st_mtime_ns == second: return False
        os.utime(path, ns=(it.st_atime_ns, second))
        return True

    @staticmethod
    def stamp(path):
        it = os.lstat(path)
        return it.st_ino, it.st_size, it.st_mtime_ns, os.path.islink(path) and os.readlink(path)


class Results(replay.Tally):
    """Remembers which step each result is of."""

    def __init__(self, case=None):
        super().__init__()
        self.case, self.lines = case, []

    def add(self, form, ok, what=None, diff=None):
        aspect = ASPECTS.get(form) or ('state' if form.startswith('state after ') else 'result')
        if ok is None: return
        where, _, command = (what or '').partition(' ')
        step = where[len(self.case):].strip('[]') or '-'
        fields = [self.case, step, aspect]
        if not ok: fields += [command, json.dumps(diff)]
        self.lines.append(('+' if ok else '-', *fields))


def run_case(case):
    results = Results(case['id'])
    replay.Tally = lambda: results
    seen = {}
    def tree_state(root, uuids):
        seen.setdefault(root, Seen(root, uuids)).uuids = uuids
        return seen[root].state()
    replay.tree_state = tree_state
    try: replay.run_case(corpus, case, programs, Options)
    except Exception: results.add('(replay error)', False, case['id'], traceback.format_exc())
    return results.lines


def main():
    replay.run_limited = run_limited
    with open(os.path.join(corpus, 'manifest.json')) as file: cases = json.load(file)['cases']
    def weight(case):
        transcript = os.path.join(corpus, case['transcripts'])
        bytes_of_disks = sum(file['size'] for file in case.get('files', ()) if file['size'] < 1 << 32)
        return os.path.getsize(transcript) + bytes_of_disks // 256
    cases.sort(key=weight, reverse=True)
    with Pool(int(jobs)) as pool:
        for lines in pool.imap_unordered(run_case, cases):
            for line in lines: print('\t'.join(line))
    print('#\t%d cases' % len(cases))


if __name__ == '__main__':
    main()
