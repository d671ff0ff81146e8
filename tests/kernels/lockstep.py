"""Programs of one launch in Triton's interpreter that wait for each other, in the worst orders that barriers allow.

The interpreter runs programs one after the other, so that one which waits for the next would wait for ever. Here each
has a thread, of which one runs at a time: from a barrier as far as the next one, whatever the others have done. What a
program reads of another that comes later in the order, without a barrier between, is not there yet; and what it
overwrites without one, an earlier program's followers have not read yet.
"""

import inspect
import threading
from collections.abc import Callable

from triton.runtime import interpreter

Order = Callable[[list[int]], list[int]]
ORDERS: dict[str, Order] = {
    "first to last": lambda programs: programs,
    "last to first": lambda programs: programs[::-1],
    "from the middle": lambda programs: programs[len(programs) // 2 :] + programs[: len(programs) // 2],
}


def lockstep(patch, module, order: Order, deleted: Callable[[int], bool] = lambda i: False) -> None:
    """Run launches so from now on; nobody waits at a module's `barrier` whose number in a program is `deleted`."""
    here, running = threading.local(), []

    def barrier(counter, target):
        here.passed += 1
        if not deleted(here.passed - 1):
            running[-1].pause(here.program)
        return target

    class Executor(interpreter.GridExecutor):
        """A grid of one dimension, its arguments on the CPU."""

        def __call__(self, *given, **named):
            known = inspect.getfullargspec(self.fn).args
            given = inspect.getcallargs(self.fn, *given, **{k: v for k, v in named.items() if k in known})
            scope, builder = interpreter._patch_lang(self.fn), interpreter.interpreter_builder
            args = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in given.items()}
            builder.set_grid_dim(*self.grid, 1, 1)
            programs, errors = list(range(self.grid[0])), []
            self.turn, self.back = [threading.Semaphore(0) for _ in programs], threading.Semaphore(0)
            left = set(programs)

            def run(p: int) -> None:
                here.program, here.passed = p, 0
                self.turn[p].acquire()
                try:
                    self.fn(**args)
                except Exception as e:
                    errors.append(e)
                left.discard(p)
                self.back.release()

            running.append(self)
            for p in programs:
                threading.Thread(target=run, args=(p,), daemon=True).start()
            while left and not errors:
                for p in order(programs):
                    if p in left:
                        builder.set_grid_idx(p, 0, 0)
                        self.turn[p].release()
                        self.back.acquire()
            scope.restore()
            if errors:
                raise errors[0]

        def pause(self, p: int) -> None:
            """Let the next program go on."""
            self.back.release()
            self.turn[p].acquire()

    patch.setattr(interpreter, "GridExecutor", Executor)
    patch.setattr(module, "barrier", barrier)
