// SPDX-License-Identifier: Apache-2.0

package conflist

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const kind = "zagent-cni"

const calico = `{
  "name": "k8s-pod-network", "cniVersion": "0.3.1", "disableCheck": true,
  "plugins": [
    {"type": "calico", "mtu": 0, "big": 12345678901234567890, "policy": {"type": "k8s"}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}`

func ours() Plugin { return Plugin{"type": kind, "socket": "/run/x.sock", "timeoutSeconds": 20} }

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func types(t *testing.T, path string) []string {
	t.Helper()
	var conf struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal([]byte(read(t, path)), &conf); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range conf.Plugins {
		all = append(all, p.Type)
	}
	return all
}

func insert(t *testing.T, dir string, wantChange bool) string {
	t.Helper()
	file, changed, err := Insert(dir, ours())
	if err != nil || changed != wantChange {
		t.Fatalf("changed %v, %v", changed, err)
	}
	return file
}

func TestThePluginComesLastAndGoesWithoutATrace(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "10-calico.conflist", calico)
	if got := insert(t, dir, true); got != path {
		t.Errorf("it is in %s", got)
	}
	if got := types(t, path); !reflect.DeepEqual(got, []string{"calico", "portmap", kind}) {
		t.Errorf("plugins %v", got)
	}
	if !strings.Contains(read(t, path), "12345678901234567890") {
		t.Error("a number was changed")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	insert(t, dir, false)

	if removed, err := Remove(dir, kind); err != nil || !removed {
		t.Errorf("%v, %v", removed, err)
	}
	var want, got any
	if json.Unmarshal([]byte(calico), &want) != nil || json.Unmarshal([]byte(read(t, path)), &got) != nil || !reflect.DeepEqual(want, got) {
		t.Errorf("left is %s", read(t, path))
	}
	if removed, err := Remove(dir, kind); err != nil || removed {
		t.Errorf("once more: %v, %v", removed, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left are %v", entries)
	}
}

func TestThePluginComesBackWhenOthersWriteTheFile(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "10-calico.conflist", calico)
	insert(t, dir, true)
	write(t, dir, "10-calico.conflist", calico) // as an upgrade of the other does
	insert(t, dir, true)
	if got := types(t, path); len(got) != 3 {
		t.Errorf("plugins %v", got)
	}
	first := write(t, dir, "05-cilium.conflist", strings.ReplaceAll(calico, "calico", "cilium"))
	if got := insert(t, dir, true); got != first {
		t.Errorf("it is in %s", got)
	}
	if got := types(t, path); len(got) != 2 {
		t.Errorf("it is still in the other: %v", got)
	}
	// Another plugin was appended behind ours: ours has to see what it makes.
	appended := strings.Replace(read(t, first), "\n  ]", ",\n    {\"type\": \"tuning\"}\n  ]", 1)
	write(t, dir, "05-cilium.conflist", appended)
	insert(t, dir, true)
	if got := types(t, first); !reflect.DeepEqual(got, []string{"cilium", "portmap", "tuning", kind}) {
		t.Errorf("plugins %v", got)
	}
}

func TestWhatIsNoConfigurationIsSaidAndLeftAlone(t *testing.T) {
	for name, tc := range map[string]struct{ file, text, want string }{
		"no JSON":       {"a.conflist", "{", "unexpected end"},
		"no plugins":    {"a.conflist", "{}", "plugins"},
		"empty plugins": {"a.conflist", `{"plugins":[]}`, "there is none"},
		"only ours":     {"a.conflist", `{"plugins":[{"type":"zagent-cni"}]}`, ""},
		"odd plugins":   {"a.conflist", `{"plugins":[7]}`, "number 1"},
		"one plugin":    {"a.conf", `{"type":"bridge"}`, "make it a .conflist"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, tc.file, tc.text)
			_, _, err := Insert(dir, ours())
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if tc.want != "" && read(t, path) != tc.text {
				t.Error("it was changed")
			}
		})
	}
	if _, _, err := Insert(t.TempDir(), ours()); !errors.Is(err, ErrNone) {
		t.Errorf("an empty directory: %v", err)
	}
	dir := t.TempDir()
	write(t, dir, "b.conflist", `{"plugins":[{"type":"zagent-cni"}]}`)
	if _, err := Remove(dir, kind); err == nil {
		t.Error("a configuration without plugins was written")
	}
}

func TestNoPrefixOfAConfigurationIsOne(t *testing.T) {
	for n := range calico {
		if out, err := apply([]byte(calico[:n]), kind, ours()); err == nil {
			t.Errorf("%d bytes became %s", n, out)
		}
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte(calico))
	f.Add([]byte(`{"plugins":[{"type":"zagent-cni"},{"type":"bridge"}]}`))
	f.Fuzz(func(t *testing.T, conf []byte) {
		with, err := apply(conf, kind, ours())
		if err != nil || with == nil {
			return
		}
		if again, err := apply(with, kind, ours()); err != nil || again != nil {
			t.Errorf("inserted twice: %s, %v", again, err)
		}
		without, err := apply(with, kind, nil)
		if err == nil && without == nil {
			t.Errorf("it does not go from %s", with)
		}
	})
}
