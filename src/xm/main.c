/* xm: the user's front end to xend. */
#include "base/cleanup.h"
#include "base/printable.h"
#include "base/surroundings.h"
#include "config/scanner.h"
#include "xm/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct command *const families[] = {console_commands, start_commands, domain_commands,
	stop_commands, carry_commands, host_commands, checkpoint_commands, trust_commands};

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(families); i++)
		for (const struct command *command = families[i]; command->name; command++)
			if (!strcmp(command->name, name) || (command->alias && !strcmp(command->alias, name)))
				return command;
	return NULL;
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct command *const *)a)->name, (*(const struct command *const *)b)->name);
}

/* All commands in the order of the alphabet; returns how many. */
static size_t all_commands(const struct command *commands[static 64])
{
	size_t count = 0;

	for (size_t i = 0; i < ARRAY_SIZE(families); i++)
		for (const struct command *command = families[i]; command->name && count < 64; command++)
			commands[count++] = command;
	qsort(commands, count, sizeof(const struct command *), by_name);
	return count;
}

static void print_help(FILE *out)
{
	const struct command *commands[64];
	size_t count = all_commands(commands);

	fprintf(out,
		"Usage: xm <subcommand> [args]\n\nControl, list and manipulate guests.\n\nSubcommands:\n\n");
	for (size_t i = 0; i < count; i++)
		fprintf(out, " %-10s %s\n", commands[i]->name, commands[i]->help);
	fprintf(out, "\n<Domain> is a domain's name or ID.\n"
		     "xm help <subcommand> tells more about one; so do xm(1), xmdomain.cfg(5) and\n"
		     "xend-config.sxp(5).\n");
}

/* What Xen's xm could and this one cannot: "Ferry has no …", and what there is instead. */
static const struct {
	const char *names, *instead;
} absent[] = {
	{"start new", "xm create starts a domain from its configuration."},
	{"delete", "What a domain was started from stays in its configuration file."},
	{"suspend", "xm save puts a domain into a file."},
	{"resume", "xm restore brings a saved domain back."},
	{"mem-set mem-max", "A domain's memory is set by memory= in its configuration."},
	{"vcpu-set", "A domain's processors are set by vcpus= in its configuration."},
	{"vcpu-list vcpu-pin", "taskset(1) tells and sets what processors a ferry-guest process may use."},
	{"top", "xm list shows the processor time of all domains."},
	{"uptime", "xm list --long shows when a domain was started."},
	{"dmesg", "xm log prints xend's log; the host's kernel has its own dmesg(1)."},
	{"version", "xm --version prints Ferry's, xm info the host's."},
	{"block-list network-list", "xm list --long shows a domain's devices."},
	{"block-attach block-detach block-configure network-attach network-detach",
		"Devices are set by disk= and vif= in a domain's configuration."},
	{"dump-core sysrq trigger debug-keys", NULL},
	{"sched-credit sched-sedf cpupool-list", "cgroups weigh and limit ferry-guest processes."},
	{"pci-attach pci-detach pci-list pci-list-assignable-devices scsi-attach scsi-detach scsi-list",
		NULL},
	{"vnet-list vnet-create vnet-delete vtpm-list tmem-list shell serve", NULL},
};

static bool among(const char *name, const char *names)
{
	size_t length = strlen(name);

	for (const char *at = names; length && (at = strstr(at, name)); at += length)
		if ((at == names || at[-1] == ' ') && (!at[length] || at[length] == ' '))
			return true;
	return false;
}

static int unknown_command(const char *name)
{
	const struct command *commands[64];
	const char *names[64], *nearest;
	size_t count = all_commands(commands);

	for (size_t i = 0; i < ARRAY_SIZE(absent); i++)
		if (among(name, absent[i].names)) {
			fprintf(stderr, "Error: Ferry has no '%s' yet.%s%s\n", name,
				absent[i].instead ? " " : "", absent[i].instead ? absent[i].instead : "");
			return 1;
		}

	for (size_t i = 0; i < count; i++)
		names[i] = commands[i]->name;
	nearest = nearest_name(name, names, count);
	fprintf(stderr, "Error: Subcommand '%s' not found!%s%s%s xm help lists them all.\n", name,
		nearest ? " Did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
	return 1;
}

static int help(int count, char **words)
{
	const struct command *command;

	if (!count || words[0][0] == '-') {
		print_help(stdout);
		return 0;
	}
	command = find_command(words[0]);
	if (!command)
		return unknown_command(words[0]);
	command_usage(command, stdout);
	return 0;
}

static bool asks_for_help(int count, char **words)
{
	for (int i = 0; i < count && strcmp(words[i], "--") != 0; i++)
		if (!strcmp(words[i], "--help") || !strcmp(words[i], "-h"))
			return true;
	return false;
}

/* What another host, a guest or a file has said may be in it. */
static void print_error(const struct error *error)
{
	_cleanup_free_ char *shown = printable_copy(error->text, PRINTABLE_LINES);

	fflush(stdout);
	fprintf(stderr, "Error: %s\n", shown && *shown ? shown : "The command failed without a reason.");
}

static void xm_close(struct xm *xm)
{
	client_close(&xm->client);
}

static int run(const struct command *command, int count, char **words)
{
	_cleanup_(arguments_free) struct arguments arguments = {0};
	_cleanup_(xm_close) struct xm xm = {0};
	struct error error = {0};
	int r = arguments_read(&arguments, command, count, words, &error);

	if (r < 0) {
		print_error(&error);
		command_usage(command, stderr);
		return 1;
	}
	if (!command->alone)
		r = client_open(&xm.client, &error);
	if (xm.client.complaint)
		fprintf(stderr, "Warning: %s xend is looked for at %s; XEND_SOCKET may name another place.\n",
			xm.client.complaint, xm.client.socket);
	if (r >= 0)
		r = command->run(&xm, &arguments, &error);
	if (r >= 0 && (fflush(stdout) != 0 || ferror(stdout)))
		r = error_set(&error, errno, "Unable to write to standard output: %s.", strerror(errno));
	if (r < 0)
		print_error(&error);
	if (r < 0 && xm.wrong_arguments)
		command_usage(command, stderr);
	return r < 0;
}

int main(int argc, char **argv)
{
	const struct command *command;

	surroundings_mend();
	if (argc < 2) {
		fprintf(stderr, "Error: xm needs a subcommand.\n");
		print_help(stderr);
		return 1;
	}
	if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return help(argc - 2, argv + 2);
	if (!strcmp(argv[1], "--version")) {
		printf("xm (Ferry) %s\n", FERRY_VERSION);
		return 0;
	}
	command = find_command(argv[1]);
	if (!command)
		return unknown_command(argv[1]);
	if (asks_for_help(argc - 2, argv + 2)) {
		command_usage(command, stdout);
		return 0;
	}
	return run(command, argc - 2, argv + 2);
}
