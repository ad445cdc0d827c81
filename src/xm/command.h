/*
 * The table of xm's commands, and what a command's function is given.
 *
 * An entry says everything that is to know of a command: names, arguments,
 * options, help. main.c finds it, reads the words after it by its table of
 * options, prints usage, and calls its function.
 */
#pragma once

#include "base/error.h"
#include "xm/client.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define OPTIONS_MAX 20
#define HELP_WIDTH 79

struct command_option {
	const char *name;     /* long, without dashes */
	char letter;          /* 0: none */
	const char *argument; /* what the option takes, as usage names it; NULL: nothing */
	const char *help;
};

/* The words of a command line, sorted. */
struct arguments {
	const struct command *command;
	bool given[OPTIONS_MAX]; /* in the order of the command's table */
	const char *value[OPTIONS_MAX];
	const char **words; /* owned array of borrowed words: everything that is no option */
	size_t word_count;
};

struct xm {
	struct client client; /* opened before a command runs */
	bool wrong_arguments; /* a function sets it before it refuses: usage is then printed */
};

struct command {
	const char *name;
	const char *alias;     /* NULL: none */
	const char *arguments; /* as usage shows them, without the options */
	const char *help;      /* one line */
	struct command_option options[OPTIONS_MAX];
	size_t least, most; /* words it takes */
	int (*run)(struct xm *xm, const struct arguments *arguments, struct error *error);
	bool alone; /* needs no xend, nor its configuration: xm->client is not opened */
};

/* Each family of commands has its table, ended by an entry without a name. */
extern const struct command domain_commands[];     /* domains.c */
extern const struct command start_commands[];      /* create.c */
extern const struct command console_commands[];    /* console.c */
extern const struct command stop_commands[];       /* lifecycle.c */
extern const struct command carry_commands[];      /* carry.c */
extern const struct command host_commands[];       /* host.c */
extern const struct command checkpoint_commands[]; /* checkpoint.c */
extern const struct command trust_commands[];      /* trust.c */

/* Sorts the words behind the command's name. Mistakes are named. */
int arguments_read(struct arguments *arguments, const struct command *command, int count, char **words,
	struct error *error);
void arguments_free(struct arguments *arguments);

/* Whether the option with this long name was given, and with what. */
bool option_given(const struct arguments *arguments, const char *name);
const char *option_value(const struct arguments *arguments, const char *name);

/* A whole number from least to most that an option gave; `fallback` where it was not given. */
int option_number(const struct arguments *arguments, const char *name, unsigned long least,
	unsigned long most, unsigned long fallback, unsigned long *number, struct error *error);

/* A text in lines of 80 columns, from a column on; each further line is indented. */
void print_wrapped(FILE *out, int column, int indent, const char *text);

/* "Usage: xm save [options] <Domain> <File>" with help and options. */
void command_usage(const struct command *command, FILE *out);
