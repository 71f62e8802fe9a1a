// SPDX-License-Identifier: Apache-2.0

package app

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// command runs the program with some arguments and variables until it ends by
// itself.
func command(t *testing.T, vars map[string]string, args ...string) (status int, out, err string) {
	t.Helper()
	leak.Check(t)
	t.Chdir(t.TempDir())
	var stdout, stderr strings.Builder
	status = Main(append([]string{"ztunnel"}, args...), MapEnv(vars, 2), &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

func TestCommands(t *testing.T) {
	line := regexp.MustCompile(`^version\.BuildInfo\{Version:"[^"]+", GitRevision:"[^"]+", RustVersion:"go[^"]+", ` +
		`BuildProfile:"[^"]+", BuildStatus:"[^"]+", IstioVersion:"1\.2", CryptoProvider:"tls-go"\}$`)
	vars := map[string]string{"ISTIO_META_ISTIO_VERSION": "1.2"}
	status, out, _ := command(t, vars, "version", "more")
	if status != 0 || !line.MatchString(strings.TrimSuffix(out, "\n")) {
		t.Errorf("version: %d, %q", status, out)
	}
	status, out, _ = command(t, vars, "help")
	first, rest, _ := strings.Cut(out, "\n")
	if status != 0 || !line.MatchString(first) || !strings.HasPrefix(rest, "commands:\n") {
		t.Errorf("help: %d, %q", status, out)
	}
	status, out, err := command(t, vars, "dance")
	if status != 1 || err != "unknown command: dance\n" || !strings.Contains(out, "commands:\n") {
		t.Errorf("an unknown command: %d, %q, %q", status, out, err)
	}
}

// TestAStartThatCannotBe ends with status 1 and one line of why.
func TestAStartThatCannotBe(t *testing.T) {
	for _, tc := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"RUST_LOG": "a=b"}, "Error: invalid env var RUST_LOG=a=b ("},
		{map[string]string{"IPV6_ENABLED": "1"}, "Error: invalid env var IPV6_ENABLED=1 ("},
		{map[string]string{"ENABLE_PROXY": "false"}, "Error: ENABLE_PROXY=false is not supported"},
		{map[string]string{"XDS_ON_DEMAND": "true"}, "Error: error parsing proxy config: DNS proxy does not currently support on-demand mode"},
		{map[string]string{"WORKLOAD_WAIT_TIMEOUT": "0"}, "Error: invalid configuration: WORKLOAD_WAIT_TIMEOUT must be longer than zero"},
	} {
		status, _, err := command(t, tc.vars, "proxy", "ztunnel")
		if status != 1 || !strings.HasPrefix(err, tc.want) || strings.Count(err, "\n") != 1 {
			t.Errorf("%v: %d, %q", tc.vars, status, err)
		}
	}
}

func TestLogsAreAsAskedFor(t *testing.T) {
	no := map[string]string{"IPV6_ENABLED": "no"} // so that nothing starts
	if _, out, _ := command(t, no, "proxy"); !strings.Contains(out, "\tinfo\tztunnel\tversion: ") {
		t.Errorf("usually: %q", out)
	}
	if _, out, _ := command(t, with(no, "RUST_LOG", "error"), "proxy"); out != "" {
		t.Errorf("with errors only: %q", out)
	}
	if _, out, _ := command(t, with(no, "LOG_FORMAT", "json"), "proxy"); !strings.HasPrefix(out, "{") || !strings.Contains(out, `"message":"version: `) {
		t.Errorf("as JSON: %q", out)
	}
}

func TestWhatIsLeftOutIsToldOf(t *testing.T) {
	if said := load(t, nil).ignored(); len(said) != 0 {
		t.Errorf("usually: %q", said)
	}
	said := load(t, map[string]string{"ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:53"}).ignored()
	if len(said) != 1 || !strings.Contains(said[0], "DNS_PROXY_ADDR") {
		t.Errorf("%q", said)
	}
	dedicated := map[string]string{"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b/c", "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:53"}
	if said := load(t, dedicated).ignored(); len(said) != 0 {
		t.Errorf("in dedicated mode, which does it: %q", said)
	}
}
