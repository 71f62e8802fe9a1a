// SPDX-License-Identifier: Apache-2.0

package conform_test

import (
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/conform"
	"github.com/ztunnel-go/ztunnel/test/conform/lab"
	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

func scenarios(t testing.TB) []*conform.Script {
	t.Helper()
	dir, err := fs.Sub(conform.Scenarios(), "testdata")
	if err != nil {
		t.Fatal(err)
	}
	all, err := conform.ParseAll(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestOurProxyConforms plays every scenario against the proxy as it is built
// here.
func TestOurProxyConforms(t *testing.T) {
	privileged.Need(t)
	leak.Check(t)
	binary, err := rig.Build(t.TempDir(), os.Getenv("ZTUNNEL_RACE") != "")
	if err != nil {
		t.Fatal(err)
	}
	stage, err := lab.New(lab.Options{Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stage.Close(); err != nil {
			t.Error(err)
		}
	}()
	suite := &conform.Suite{Stage: stage, Patience: 20 * time.Second}
	results, err := suite.Run(t.Context(), scenarios(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		t.Run(r.Script.Name, func(t *testing.T) {
			if r.Err != nil {
				t.Errorf("contract %s: %s\n%v\n%s", r.Script.Contract, r.Script.Title, r.Err, r.Logs)
			}
		})
	}
}

// TestEveryScenarioIsFoundOnce keeps two files from saying the same.
func TestEveryScenarioIsFoundOnce(t *testing.T) {
	titles := map[string]string{}
	for _, s := range scenarios(t) {
		if other, ok := titles[s.Title]; ok {
			t.Errorf("%s and %s both say: %s", s.Name, other, s.Title)
		}
		titles[s.Title] = s.Name
		if last := s.Title[len(s.Title)-1]; last != '.' {
			t.Errorf("%s: the title is no sentence: %s", s.Name, s.Title)
		}
	}
}
