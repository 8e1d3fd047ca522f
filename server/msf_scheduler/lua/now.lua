-- → seconds on the clock that never jumps
return stamp(clock())
