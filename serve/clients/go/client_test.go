package livetrain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var vectors = "../../../tests/serve/vectors"

func init() {
	if other := os.Getenv("LIVETRAIN_VECTORS"); other != "" {
		vectors = other
	}
}

type tensorCase struct {
	Shape  []int         `json:"shape"`
	Values []json.Number `json:"values"`
}

type vectorCase struct {
	ID           string                `json:"id"`
	Rows         bool                  `json:"rows"`
	Header       int                   `json:"header"`
	AnswerHeader int                   `json:"answer_header"`
	Tensors      map[string]tensorCase `json:"tensors"`
	Scores       map[string][]float64  `json:"scores"`
}

func bytesOf(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(vectors, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func casesOf(t *testing.T) map[string]vectorCase {
	t.Helper()
	var cases map[string]vectorCase
	if err := json.Unmarshal(bytesOf(t, "cases.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 2 {
		t.Fatalf("%d cases", len(cases))
	}
	return cases
}

func requestOf(t *testing.T, given vectorCase) *Request {
	t.Helper()
	request := &Request{ID: given.ID, Rows: given.Rows}
	for name, about := range given.Tensors {
		feature := strings.SplitN(name, ".", 2)[1]
		if strings.HasPrefix(name, "dense.") {
			numbers := make([]float32, len(about.Values))
			for at, text := range about.Values {
				numbers[at] = float32(math.NaN())
				if value, err := text.Float64(); err == nil {
					numbers[at] = float32(value)
				}
			}
			if len(about.Shape) == 1 {
				request.Numbers(feature, numbers...)
				continue
			}
			rows := [][]float32{}
			for at := 0; at < len(numbers); at += about.Shape[1] {
				rows = append(rows, numbers[at:at+about.Shape[1]])
			}
			request.Vectors(feature, rows...)
		} else if strings.HasPrefix(name, "ids.") {
			rows := [][]int64{}
			at := 0
			for _, text := range given.Tensors["lengths."+feature].Values {
				length, _ := strconv.Atoi(text.String())
				row := []int64{}
				for _, id := range about.Values[at : at+length] {
					value, err := id.Int64()
					if err != nil {
						t.Fatal(err)
					}
					row = append(row, value)
				}
				at += length
				rows = append(rows, row)
			}
			request.Lists(feature, rows...)
		}
	}
	return request
}

func TestRequestsAreTheVectorsBytes(t *testing.T) {
	for name, given := range casesOf(t) {
		body, header, err := requestOf(t, given).Encode()
		if err != nil || header != given.Header {
			t.Errorf("%s: header %d, wanted %d, %v", name, header, given.Header, err)
		}
		wanted := bytesOf(t, name+".request.bin")
		if !bytes.Equal(body, wanted) {
			t.Errorf("%s: other bytes than %s.request.bin", name, name)
		}
	}
}

func TestAnswersHaveTheVectorsScores(t *testing.T) {
	for name, given := range casesOf(t) {
		answer, err := Decode(bytesOf(t, name+".answer.bin"), given.AnswerHeader)
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, answer, given)
		if answer.Version != "20261130" || *answer.Fence != 7 || *answer.Delta != 2 || answer.ID != given.ID {
			t.Errorf("%s: %+v", name, answer)
		}
	}
}

func same(t *testing.T, name string, answer *Answer, given vectorCase) {
	t.Helper()
	for task, wanted := range given.Scores {
		found := answer.Scores[task]
		if len(found) != len(wanted) {
			t.Fatalf("%s: %d scores", name, len(found))
		}
		for at, value := range wanted {
			if math.Float32bits(found[at]) != math.Float32bits(float32(value)) {
				t.Errorf("%s: score %d of %s is %v, wanted %v", name, at, task, found[at], value)
			}
		}
	}
}

// A server that gives the vectors' answers, and refuses what is not a vector.
func server(t *testing.T) *httptest.Server {
	t.Helper()
	cases := casesOf(t)
	handle := func(out http.ResponseWriter, in *http.Request) {
		body, _ := io.ReadAll(in.Body)
		for name, given := range cases {
			if bytes.Equal(body, bytesOf(t, name+".request.bin")) && in.URL.Path == "/v2/models/din/infer" {
				out.Header().Set(headerField, strconv.Itoa(given.AnswerHeader))
				out.Write(bytesOf(t, name+".answer.bin"))
				return
			}
		}
		status, _ := strconv.Atoi(strings.Trim(in.URL.Path, "/v2models/infer"))
		out.WriteHeader(status)
		out.Write([]byte(`{"error": "said why"}`))
	}
	made := httptest.NewServer(http.HandlerFunc(handle))
	t.Cleanup(made.Close)
	return made
}

func TestClientAsksAndReads(t *testing.T) {
	client := NewClient(server(t).URL+"/", 30*time.Second)
	for name, given := range casesOf(t) {
		answer, err := client.Infer(context.Background(), "din", requestOf(t, given))
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, answer, given)
	}
}

// A server that runs, with the model of the vectors as "din".
func TestAServerGivesTheVectorsScores(t *testing.T) {
	address := os.Getenv("LIVETRAIN_SERVER")
	if address == "" {
		t.Skip("LIVETRAIN_SERVER names none")
	}
	client := NewClient(address, 30*time.Second)
	if !client.Ready(context.Background()) {
		t.Fatal("not ready")
	}
	for name, given := range casesOf(t) {
		answer, err := client.Infer(context.Background(), "din", requestOf(t, given))
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, answer, given)
	}
}

func TestEachFailureIsOfItsKind(t *testing.T) {
	address := server(t).URL
	client := NewClient(address, 30*time.Second)
	ask := func(model string) error {
		_, err := client.Infer(context.Background(), model, (&Request{}).IDs("user", 1))
		return err
	}
	var refused *Refused
	if err := ask("400"); !errors.As(err, &refused) || refused.Status != 400 || refused.Sentence != "said why" {
		t.Error(err)
	}
	var busy *Busy
	if err := ask("429"); !errors.As(err, &busy) {
		t.Error(err)
	}
	var unreachable *Unreachable
	if err := ask("500"); !errors.As(err, &unreachable) {
		t.Error(err)
	}
	if _, err := NewClient("http://127.0.0.1:1", time.Second).Rank(context.Background(), &Request{}); !errors.As(err, &unreachable) {
		t.Error(err)
	}
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(300 * time.Millisecond) }))
	defer slow.Close()
	var timed *TimedOut
	if _, err := NewClient(slow.URL, 50*time.Millisecond).Rank(context.Background(), &Request{}); !errors.As(err, &timed) {
		t.Error(err)
	}
}

func TestAnotherConnectionIsMadeWhereTheKeptOneWasClosed(t *testing.T) {
	made := server(t)
	client := NewClient(made.URL, 30*time.Second)
	for _, given := range casesOf(t) {
		if _, err := client.Infer(context.Background(), "din", requestOf(t, given)); err != nil {
			t.Fatal(err)
		}
		made.CloseClientConnections()
	}
}

func TestHashed(t *testing.T) {
	var hashes map[string]int64
	if err := json.Unmarshal(bytesOf(t, "hashes.json"), &hashes); err != nil || len(hashes) < 5 {
		t.Fatal(err, len(hashes))
	}
	for text, wanted := range hashes {
		if found := Hashed(text); found != wanted {
			t.Errorf("%q: %d, wanted %d", text, found, wanted)
		}
	}
}

func TestWrongRequestsAndAnswersAreErrors(t *testing.T) {
	if _, _, err := (&Request{}).IDs("user", 1).IDs("user", 2).Encode(); err == nil {
		t.Error("a feature twice")
	}
	if _, _, err := (&Request{}).Vectors("cover", []float32{1, 2}, []float32{1}).Encode(); err == nil {
		t.Error("vectors of two widths")
	}
	given := casesOf(t)["rank"]
	body := bytesOf(t, "rank.answer.bin")
	for length := 0; length < len(body); length++ {
		if _, err := Decode(body[:length], given.AnswerHeader); err == nil {
			t.Errorf("%d of %d bytes", length, len(body))
		}
	}
	if _, err := Decode(append(append([]byte{}, body...), 0), given.AnswerHeader); err == nil {
		t.Error("a byte more")
	}
}
