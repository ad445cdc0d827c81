/*
 * How threads take turns on a processor. A guest's processors compute for as long as they
 * may; xend, carriers and a guest's devices have little to do at a time, and somebody waits
 * for it. Who takes short turns comes in soon after it wakes, and is not kept out by a thread
 * that it has just woken; where it computes itself, it is interrupted more often.
 *
 * Linux 6.12 and later: sched_setattr(2), the runtime of SCHED_OTHER. Earlier ones know no
 * such thing; there all stays as it is.
 */
#pragma once

/* This thread, and whom it starts from now on. */
void turns_short(void);

/* This thread again as any other. */
void turns_usual(void);
