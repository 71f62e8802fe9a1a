// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A logbook is a log that a test can read while it is written.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type followed struct {
	*Local
	t     *testing.T
	store *mesh.Store
	log   *logbook
}

func follow(t *testing.T, path string) followed {
	t.Helper()
	leak.Check(t)
	f := followed{t: t, store: mesh.NewStore(), log: &logbook{}}
	local, err := OpenLocal(t.Context(), LocalConfig{Path: path, Interval: 5 * time.Millisecond}, f.store, slog.New(slog.NewTextHandler(f.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	f.Local = local
	return f
}

func (f followed) await(what string, is func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s did not come; store: %s; log:\n%s", what, keys(f.store), f.log)
		}
	}
}

func (f followed) awaitKeys(want string) {
	f.t.Helper()
	f.await(want, func() bool { return keys(f.store) == want })
}

func version(uid string) []byte {
	return fmt.Appendf(nil, "workloads: [{uid: %s, namespace: n, workloadIps: [], services: {}}]\n", uid)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTellsWhatItReadAndFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	write(t, path, version("a"))
	f := follow(t, path)
	if !strings.Contains(f.log.String(), `msg="local config initialized" num_workloads=1 num_policies=0`) {
		t.Errorf("log:\n%s", f.log)
	}
	f.awaitKeys("w:a=")

	write(t, path, version("longer")) // in place
	f.awaitKeys("w:longer=")

	write(t, path+".new", version("other2")) // by rename, of the same length
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	f.awaitKeys("w:other2=")
	if got := f.Static().Workloads[0].UID; got != "other2" {
		t.Errorf("the static view shows %s", got)
	}
	if got := f.Stats(); got.Applied < 3 {
		t.Errorf("stats %+v; log:\n%s", got, f.log)
	}
}

func TestABadVersionIsToldOfOnceAndChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	write(t, path, version("a"))
	f := follow(t, path)
	write(t, path+".new", []byte("workloads:\n- bogus: 1\n"))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	f.await("a refusal", func() bool { return f.Stats().Refused == 1 })
	time.Sleep(50 * time.Millisecond) // ten more looks
	if got := f.Stats(); got.Refused != 1 || got.Applied != 1 {
		t.Errorf("stats %+v; log:\n%s", got, f.log)
	}
	if want := "workloads[0]: unknown field `bogus` at line 2 column 3 of " + path; !strings.Contains(f.log.String(), want) {
		t.Errorf("log lacks %q:\n%s", want, f.log)
	}
	if got := keys(f.store); got != "w:a=" {
		t.Errorf("store: %s", got)
	}
	write(t, path, version("good"))
	f.awaitKeys("w:good=")
}

func TestAFileThatIsGoneIsToldOfOnceAndMayComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	write(t, path, version("a"))
	f := follow(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.await("a refusal", func() bool { return f.Stats().Refused == 1 })
	time.Sleep(50 * time.Millisecond)
	if got := f.Stats().Refused; got != 1 {
		t.Errorf("told %d times", got)
	}
	if got := keys(f.store); got != "w:a=" {
		t.Errorf("store: %s", got)
	}
	write(t, path, version("b"))
	f.awaitKeys("w:b=")
}

// A mounted ConfigMap is a link to a file through a link to a directory, and
// it is the latter that changes.
func TestFollowsTheLinksOfAConfigMap(t *testing.T) {
	dir := t.TempDir()
	for i, uid := range []string{"first1", "second"} { // of one length
		sub := filepath.Join(dir, fmt.Sprint("..", i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(sub, "mesh.yaml"), version(uid))
	}
	for from, to := range map[string]string{"..data": "..0", "mesh.yaml": "..data/mesh.yaml", "..next": "..1"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	f := follow(t, filepath.Join(dir, "mesh.yaml"))
	f.awaitKeys("w:first1=")
	if err := os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	f.awaitKeys("w:second=")
}

func TestInlineDocumentsAreReadOnce(t *testing.T) {
	leak.Check(t)
	store, log := mesh.NewStore(), &logbook{}
	l, err := OpenLocal(t.Context(), LocalConfig{Inline: string(version("a"))}, store, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(store); got != "w:a=" {
		t.Errorf("store: %s", got)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := keys(store); got != "w:a=" {
		t.Errorf("closing changed the store: %s", got)
	}
}

func TestWithNeitherPathNorDocumentThereIsNothing(t *testing.T) {
	l, err := OpenLocal(t.Context(), LocalConfig{}, mesh.NewStore(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if s := l.Static(); s == nil || len(s.Workloads) != 0 {
		t.Errorf("static: %v", s)
	}
}

func TestABadFirstVersionIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	write(t, path, []byte("bogus: 1"))
	for _, tc := range []struct {
		cfg  LocalConfig
		want string
	}{
		{LocalConfig{Path: path}, "unknown field `bogus` at line 1 column 1 of " + path},
		{LocalConfig{Path: path + ".none"}, "no such file"},
		{LocalConfig{Inline: "bogus: 1"}, "unknown field `bogus` at line 1 column 1 of LOCAL_XDS"},
		{LocalConfig{Path: path, Inline: "{}"}, "invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set"},
	} {
		_, err := OpenLocal(t.Context(), tc.cfg, mesh.NewStore(), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.cfg, err, tc.want)
		}
	}
}
