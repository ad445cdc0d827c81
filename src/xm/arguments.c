#include "xm/command.h"

#include "base/cleanup.h"

#include <errno.h>
#include <string.h>

/* The option's place in the table, or -1. A beginning of a long name is enough where only one option has it.
 */
static int find_long(const struct command *command, const char *name, size_t length)
{
	int found = -1;

	for (int i = 0; i < OPTIONS_MAX && command->options[i].name; i++) {
		if (strncmp(command->options[i].name, name, length) != 0)
			continue;
		if (strlen(command->options[i].name) == length)
			return i;
		found = found == -1 ? i : -2;
	}
	return found < 0 ? -1 : found;
}

static int find_letter(const struct command *command, char letter)
{
	for (int i = 0; i < OPTIONS_MAX && command->options[i].name; i++)
		if (command->options[i].letter == letter)
			return i;
	return -1;
}

static int unknown(const struct command *command, const char *word, size_t length, struct error *error)
{
	return error_set(error, EINVAL, "xm %s: unknown option '%.*s'.", command->name, (int)length, word);
}

static int needs_argument(const struct command *command, int option, struct error *error)
{
	return error_set(error, EINVAL, "xm %s: --%s needs a value: %s.", command->name,
		command->options[option].name, command->options[option].argument);
}

/* --name, --name=value, --name value. *at is moved over the words that were used. */
static int read_long(struct arguments *arguments, int count, char **words, int *at, struct error *error)
{
	const struct command *command = arguments->command;
	const char *word = words[*at];
	size_t length = strcspn(word + 2, "=");
	const char *value = word[2 + length] ? word + 2 + length + 1 : NULL;
	int option = find_long(command, word + 2, length);

	if (option < 0)
		return unknown(command, word, length + 2, error);
	if (value && !command->options[option].argument)
		return error_set(error, EINVAL, "xm %s: --%s takes no value, found '%s'.", command->name,
			command->options[option].name, value);
	if (!value && command->options[option].argument) {
		if (*at + 1 >= count)
			return needs_argument(command, option, error);
		value = words[++*at];
	}
	arguments->given[option] = true;
	arguments->value[option] = value;
	return 0;
}

/* -a, -abc, -fFILE, -f FILE */
static int read_letters(struct arguments *arguments, int count, char **words, int *at, struct error *error)
{
	const struct command *command = arguments->command;

	for (const char *letter = words[*at] + 1; *letter; letter++) {
		int option = find_letter(command, *letter);

		if (option < 0) {
			char word[3] = {'-', *letter, 0};

			return unknown(command, word, 2, error);
		}
		arguments->given[option] = true;
		if (!command->options[option].argument)
			continue;
		if (!letter[1] && *at + 1 >= count)
			return needs_argument(command, option, error);
		arguments->value[option] = letter[1] ? letter + 1 : words[++*at];
		break;
	}
	return 0;
}

int arguments_read(struct arguments *arguments, const struct command *command, int count, char **words,
	struct error *error)
{
	bool options_over = false;

	*arguments =
		(struct arguments){.command = command, .words = calloc((size_t)count + 1, sizeof(char *))};
	if (!arguments->words)
		return error_set(error, ENOMEM, "Out of memory.");
	for (int i = 0; i < count; i++) {
		int r = 0;

		if (options_over || words[i][0] != '-' || !words[i][1])
			arguments->words[arguments->word_count++] = words[i];
		else if (!strcmp(words[i], "--"))
			options_over = true;
		else if (words[i][1] == '-')
			r = read_long(arguments, count, words, &i, error);
		else
			r = read_letters(arguments, count, words, &i, error);
		if (r < 0)
			return r;
	}
	if (arguments->word_count < command->least) {
		const char *last = arguments->word_count ? arguments->words[arguments->word_count - 1] : NULL;

		return error_set(error, EINVAL, "xm %s: expected %s, found %s%s%s.", command->name,
			command->arguments, last ? "only '" : "nothing", last ? last : "", last ? "'" : "");
	}
	if (arguments->word_count > command->most)
		return error_set(error, EINVAL, "xm %s: expected %s, found '%s' behind it.", command->name,
			*command->arguments ? command->arguments : "no argument",
			arguments->words[command->most]);
	return 0;
}

void arguments_free(struct arguments *arguments)
{
	free(arguments->words);
	*arguments = (struct arguments){0};
}

bool option_given(const struct arguments *arguments, const char *name)
{
	int option = find_long(arguments->command, name, strlen(name));

	return option >= 0 && arguments->given[option];
}

const char *option_value(const struct arguments *arguments, const char *name)
{
	int option = find_long(arguments->command, name, strlen(name));

	return option >= 0 ? arguments->value[option] : NULL;
}

int option_number(const struct arguments *arguments, const char *name, unsigned long least,
	unsigned long most, unsigned long fallback, unsigned long *number, struct error *error)
{
	const char *value = option_value(arguments, name);

	*number = fallback;
	if (!value)
		return 0;
	*number = strtoul(value, NULL, 10);
	if (!*value || strlen(value) > 15 || strspn(value, "0123456789") != strlen(value) ||
		*number < least || *number > most)
		return error_set(error, EINVAL,
			"xm %s: --%s takes a whole number from %lu to %lu, found '%s'.",
			arguments->command->name, name, least, most, value);
	return 0;
}

void print_wrapped(FILE *out, int column, int indent, const char *text)
{
	while (*(text += strspn(text, " \n"))) {
		int length = (int)strcspn(text, " \n");

		if (column > indent && column + 1 + length > HELP_WIDTH) {
			fprintf(out, "\n%*s", indent, "");
			column = indent;
		}
		column += fprintf(out, "%s%.*s", column > indent ? " " : "", length, text);
		text += length;
	}
	fputc('\n', out);
}

void command_usage(const struct command *command, FILE *out)
{
	bool options = command->options[0].name;
	const char *arguments = command->arguments, *end;

	/* One line for each way to call it. */
	for (int way = 0; (end = strstr(arguments, " | ")); way++, arguments = end + 3)
		fprintf(out, "%s xm %s%s %.*s\n", way ? "      " : "Usage:", command->name,
			way ? "" : " [options]", (int)(end - arguments), arguments);
	fprintf(out, "%s xm %s%s%s%s\n\n",
		arguments != command->arguments ? "      " : "Usage:", command->name,
		options && arguments == command->arguments ? " [options]" : "", *arguments ? " " : "",
		arguments);
	print_wrapped(out, 0, 0, command->help);
	for (size_t i = 0; i < OPTIONS_MAX && command->options[i].name; i++) {
		const struct command_option *option = &command->options[i];
		char text[64], letter[8] = "    ";

		if (option->letter)
			snprintf(letter, sizeof(letter), "-%c, ", option->letter);
		snprintf(text, sizeof(text), "%s--%s%s%s", letter, option->name, option->argument ? "=" : "",
			option->argument ? option->argument : "");
		fprintf(out, "%s  %-26s ", i ? "" : "\nOptions:\n", text);
		print_wrapped(out, 29, 29, option->help);
	}
}
