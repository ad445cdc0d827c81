/*
 * What a program takes for granted, and whoever starts it may not have seen to: descriptors 0 to 2 are open,
 * no signal is blocked, and the ends of its children can be asked for.
 */
#pragma once

/* First of all in main. What is missing cannot be read or written, but is no other file's number. */
void surroundings_mend(void);
