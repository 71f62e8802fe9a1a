// SPDX-License-Identifier: Apache-2.0

package static

import (
	"reflect"
	"strings"
	"testing"
)

const aFile = `# the machine's workloads
workloads:
- name: web
  namespace: shop
  serviceAccount: web
  netns: web
- {name: db, netns: /run/docker/netns/abc}
- name: cache
  pid: 4711
- name: queue
  cgroup: /system.slice/docker-0123.scope
- name: mail
  unit: mail.service
`

func TestAFileOfWorkloads(t *testing.T) {
	got, err := Parse([]byte(aFile))
	want := []Workload{
		{3, "web", "shop", "web", "web", 0, "", ""},
		{7, "db", "default", "default", "/run/docker/netns/abc", 0, "", ""},
		{8, "cache", "default", "default", "", 4711, "", ""},
		{10, "queue", "default", "default", "", 0, "/system.slice/docker-0123.scope", ""},
		{12, "mail", "default", "default", "", 0, "", "mail.service"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Parse([]byte("workloads: []")); err != nil || len(got) != 0 {
		t.Errorf("none: %v, %v", got, err)
	}
}

func TestWhatAFileMayNotSayIsNamedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "workloads is missing",
		"workload: []":           "line 1",
		"workloads: 7":           "line 1",
		"workloads: [a]":         "line 1: a workload is a list of fields",
		"workloads:\n- netns: a": "line 2: name is missing",
		"workloads:\n- name: a":  "has 0 of netns",
		"workloads:\n- {name: a, netns: a, pid: 1}":                            "has 2 of netns",
		"workloads:\n- {name: a, netns: a}\n- {name: a, pid: 1}":               "line 3: workload default/a is in line 2 already",
		"workloads:\n- {name: a, name: b, netns: a}":                           "name is there twice",
		"workloads:\n- {name: a, netns: a, port: 1}":                           `no field is called "port"`,
		"workloads:\n- {name: a/b, netns: a}":                                  "is no name",
		"workloads:\n- {name: [a], netns: a}":                                  "name has no value",
		"workloads:\n- {name: a, netns: ~}":                                    "netns has no value",
		"workloads:\n- {name: a, netns: a/b}":                                  "neither a name nor an absolute path",
		"workloads:\n- {name: a, netns: ..}":                                   "neither a name nor an absolute path",
		"workloads:\n- {name: a, pid: -1}":                                     "is no process",
		"workloads:\n- {name: a, pid: x}":                                      "is no process",
		"workloads:\n- {name: a, cgroup: x}":                                   "no path from the root",
		"workloads:\n- {name: a, cgroup: /a/../..}":                            "no path from the root",
		"workloads:\n- {name: a, unit: a}":                                     "no unit's name",
		"workloads:\n- {name: a, netns: a}\n---\nworkloads: []":                "more than one document",
		"workloads:\n- {name: " + strings.Repeat("a", maxName+1) + ", pid: 1}": "is no name",
	} {
		if got, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}

// TestNoPrefixOfAFileInvents: a prefix of YAML may be YAML, so it is held that
// it says nothing but what the file said, in names that may be cut.
func TestNoPrefixOfAFileInvents(t *testing.T) {
	whole, err := Parse([]byte(aFile))
	if err != nil {
		t.Fatal(err)
	}
	for n := range aFile {
		got, err := Parse([]byte(aFile[:n]))
		if err != nil {
			continue
		}
		if len(got) > len(whole) {
			t.Errorf("%d bytes have %d workloads", n, len(got))
		}
		for i, w := range got {
			if !strings.HasPrefix(whole[i].Name, w.Name) || w.Line != whole[i].Line {
				t.Errorf("%d bytes have %+v", n, w)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(aFile))
	f.Add([]byte("workloads:\n- &a {name: a, netns: a}\n- *a\n"))
	f.Add([]byte("workloads: [{name: a, pid: 1}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := Parse(text)
		if err != nil && all != nil {
			t.Errorf("%v beside %v", all, err)
		}
		for _, w := range all {
			if w.Name == "" || w.Line == 0 || len(w.UID()) > 600 {
				t.Errorf("%+v", w)
			}
		}
	})
}
