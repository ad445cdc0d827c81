/* xend-config.sxp. */
#include "base/cleanup.h"
#include "config/sxp.h"
#include "config/xend_config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static int parse(struct xend_config *config, const char *text, struct error *error)
{
	return xend_config_parse(config, "x.sxp", text, strlen(text), error);
}

static void the_chapters_listing_is_understood(void **state)
{
	static const char text[] =
		"# -*- sh -*-\n"
		"(xend-relocation-server yes)\n"
		"(xend-relocation-port 8003)\n"
		"(xend-relocation-address '')            ; '' = every address\n"
		"#(xend-unix-server no)\n"
		"(xend-relocation-hosts-allow '^localhost$ ^.*\\\\.our-network\\\\.mil$\n   10.0.0.2')\n"
		"(xend-unix-server yes) (xend-unix-path /tmp/s)\n"
		"(network-script \"network-bridge netdev=eth0\") (vif-script vif-bridge)\n"
		"(dom0-min-mem\n 256) (dom0-cpus 0)\n(xend-tcp-xmlrpc-server no)\n"
		"(xen-api-server ((9363 pam '^localhost$') (unix none)))\n";
	_cleanup_xend_config_ struct xend_config config = {0};
	struct error error = {0};

	(void)state;
	if (parse(&config, text, &error) < 0)
		fail_msg("%s", error.text);
	assert_true(config.relocation_server);
	assert_int_equal(config.relocation_port, 8003);
	assert_string_equal(config.relocation_address, "");
	assert_int_equal(config.allow_count, 3);
	assert_string_equal(config.allow[1], "^.*\\.our-network\\.mil$");
	assert_string_equal(config.allow[2], "10.0.0.2");
	assert_string_equal(config.network_script, "network-bridge netdev=eth0");
	assert_int_equal(config.dom0_min_mem, 256);
	assert_string_equal(config.unix_path, "/tmp/s");
}

static void a_pattern_may_have_single_backslashes(void **state)
{
	_cleanup_xend_config_ struct xend_config config = {0};

	(void)state;
	assert_int_equal(parse(&config, "(xend-relocation-hosts-allow 'a\\.mil$ it\\'s \\\\.b')", NULL), 0);
	assert_string_equal(config.allow[0], "a\\.mil$");
	assert_string_equal(config.allow[1], "it's");
	assert_string_equal(config.allow[2], "\\.b");
}

static void a_missing_file_means_defaults(void **state)
{
	_cleanup_xend_config_ struct xend_config config = {0};

	(void)state;
	assert_int_equal(xend_config_load(&config, "/nonexistent/xend-config.sxp", NULL), 0);
	assert_true(config.unix_server);
	assert_false(config.relocation_server);
	assert_int_equal(config.relocation_port, 8002);
	assert_int_equal(config.relocation_max_downtime, 50);
	assert_int_equal(config.storage_timeout, 60);
	assert_int_equal(config.relocation_connections, 0);
	assert_int_equal(config.console_limit, 1024);
	assert_int_equal(config.logfile_limit, 10);
	assert_string_equal(config.unix_path, "/var/lib/xend/xend-socket");
	assert_string_equal(config.logfile, "/var/log/xen/xend.log");
	assert_string_equal(config.vif_script, "vif-bridge");
	assert_int_equal(config.allow_count, 0);
	assert_false(config.relocation_clear_text);
	assert_string_equal(config.relocation_ca_file, "");
	assert_string_equal(config.relocation_cert_file, "");
}

static void mistakes_give_the_place_and_what_was_expected(void **state)
{
	static const struct {
		const char *text, *sentence;
	} cases[] = {
		{"(xend-port 8000", "line 1, column 16: expected ')' to end the '(' in line 1, column 1; "
				    "found the end of the file."},
		{"(xend-port 8000))", "line 1, column 17: expected '(' or the end of the file, found ')'."},
		{"\nxend-port 8000", "line 2, column 1: expected '(' before an option, found 'xend-port'."},
		{"()", "line 1, column 1: expected the name of an option after '('."},
		{"(xend-port)", "line 1, column 1: xend-port: expected a value after the name, found ')'."},
		{"(xend-port many)",
			"line 1, column 12: xend-port: expected a whole number up to 65535, found 'many'."},
		{"(xend-port 70000)",
			"line 1, column 12: xend-port: expected a whole number up to 65535, found '70000'."},
		{"(console-limit 0)", "line 1, column 16: console-limit: expected a whole number from 1 to "
				      "16384, found '0'."},
		{"(console-limit 16385)", "line 1, column 16: console-limit: expected a whole number from 1 "
					  "to 16384, found '16385'."},
		{"(xend-port (8000))", "line 1, column 12: xend-port: expected a value, found '('."},
		{"(xend-unix-server maybe)",
			"line 1, column 19: xend-unix-server: expected yes or no, found 'maybe'."},
		{"(loglevel loud)", "line 1, column 11: loglevel: expected DEBUG, INFO, WARNING, ERROR or "
				    "CRITICAL, found 'loud'."},
		{"(logfile xend.log)", "line 1, column 10: logfile: expected a path that begins with '/', "
				       "found 'xend.log'."},
		{"(network-script network-bridge netdev=eth0)",
			"line 1, column 32: network-script: expected ')' after one value; "
			"a value with blanks belongs in quotes."},
		{"(xend-relocation-hosts-alow '')",
			"line 1, column 2: unknown option 'xend-relocation-hosts-alow': did you mean "
			"'xend-relocation-hosts-allow'?"},
		{"(xend-address 'abc)", "line 1, column 20: expected ' to end the text that begins in line "
					"1, column 15; found the "
					"end of the file."},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_xend_config_ struct xend_config config = {0};
		struct error error = {0};
		char sentence[512];

		assert_int_equal(parse(&config, cases[i].text, &error), -EINVAL);
		snprintf(sentence, sizeof(sentence), "x.sxp, %s", cases[i].sentence);
		assert_string_equal(error.text, sentence);
		assert_null(config.logfile);
	}
}

static void settings_without_effect_are_named(void **state)
{
	_cleanup_xend_config_ struct xend_config config = {0};
	_cleanup_json_ json_t *warnings = NULL;

	(void)state;
	assert_int_equal(
		parse(&config, "(dom0-cpus 1) (xend-http-server no) (enable-dump yes) (xend-port 1)", NULL),
		0);
	warnings = xend_config_warnings(&config);
	assert_int_equal(json_array_size(warnings), 2);
	assert_string_equal(json_string_value(json_array_get(warnings, 0)),
		"The option 'dom0-cpus' has no effect: the host keeps all its CPUs.");
}

static void a_bad_pattern_is_named(void **state)
{
	_cleanup_xend_config_ struct xend_config config = {0};
	struct error error = {0};

	(void)state;
	assert_int_equal(parse(&config, "(xend-relocation-hosts-allow '^a$ [b')", &error), -EINVAL);
	assert_non_null(strstr(error.text, "'[b' is not a regular expression: "));
	assert_int_equal(
		parse(&config, "(xend-relocation-hosts-allow 'fd00::/64 10.0.0.0/33')", &error), -EINVAL);
	assert_non_null(strstr(error.text, "'10.0.0.0/33' is no network, as 10.0.0.0/24 and fd00::/64 are."));
}

static void atoms_read_back_as_written(void **state)
{
	static const char *const atoms[] = {
		"", "plain", "two words", "it's", "back\\slash", "(paren", "#hash", "a\"b", "caf\xc3\xa9"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(atoms); i++) {
		_cleanup_buffer_ struct buffer out = {0};
		_cleanup_value_ struct value list = {0};

		sxp_pair(&out, "name", atoms[i]);
		assert_int_equal(sxp_parse(&list, "t", (char *)out.data, out.size, NULL), 0);
		assert_int_equal(list.count, 1);
		assert_int_equal(list.items[0].count, 2);
		assert_string_equal(list.items[0].items[1].text, atoms[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_chapters_listing_is_understood),
		cmocka_unit_test(a_pattern_may_have_single_backslashes),
		cmocka_unit_test(a_missing_file_means_defaults),
		cmocka_unit_test(mistakes_give_the_place_and_what_was_expected),
		cmocka_unit_test(settings_without_effect_are_named),
		cmocka_unit_test(a_bad_pattern_is_named),
		cmocka_unit_test(atoms_read_back_as_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
