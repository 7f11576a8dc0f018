//! Models from a hub, through the crate `hf-hub` and the cache it shares with Python.

use crate::hub_cache::{self, INDEX};
use crate::is_commit;
use crate::revision::is_hex;
use crate::{
    HubError, HubEvent, HubOptions, ResolutionSource, ResolvedDataset, ResolvedModel,
    RevisionRecord,
};
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Time for the hub to say what a revision is.
const RESOLVE_SECONDS_MAX: u64 = 10;
/// Times a broken download is resumed.
const N_RETRIES: usize = 5;

/// One repository asked for with some options.
struct Request<'a> {
    repo: &'a str,
    options: &'a HubOptions,
    /// Its folder in the cache.
    folder: PathBuf,
    kind: RepoType,
}

pub(crate) fn resolve(
    repo: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedModel, HubError> {
    let folder = hub_cache::repository(&options.hub_cache_dir, repo);
    let request = Request { repo, options, folder, kind: RepoType::Model };
    request.resolve(progress, Request::fetch, Request::use_cache)
}

/// Finds the data files of a data set.
pub(crate) fn resolve_dataset(
    repo: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedDataset, HubError> {
    let folder = hub_cache::dataset(&options.hub_cache_dir, repo);
    let request = Request { repo, options, folder, kind: RepoType::Dataset };
    request.resolve(progress, Request::fetch_dataset, Request::cached_dataset)
}

/// Why the hub did not say what a revision is.
enum Unanswered {
    /// It said that we may not know, or that there is no such thing.
    Refused(HubError),
    /// Nobody answered.
    Unreachable(String),
}

impl Request<'_> {
    fn revision(&self) -> Option<&str> {
        self.options.revision.as_deref()
    }

    /// What the hub has, by `fetch`, or what the cache has where the hub must not or cannot be
    /// asked.
    fn resolve<'p, R>(
        &self,
        progress: &'p mut dyn FnMut(HubEvent),
        fetch: impl FnOnce(&Self, &Api, &RepoInfo, &'p mut dyn FnMut(HubEvent)) -> Result<R, HubError>,
        cached: impl FnOnce(&Self, String, &'p mut dyn FnMut(HubEvent)) -> Result<R, HubError>,
    ) -> Result<R, HubError> {
        self.warn_of_moving_revision(progress);
        if self.options.offline {
            return cached(self, "the network is not allowed (offline)".to_owned(), progress);
        }
        let api = self.api()?;
        match self.ask(&api) {
            Ok(info) => fetch(self, &api, &info, progress),
            Err(Unanswered::Refused(error)) => Err(error),
            Err(Unanswered::Unreachable(why)) => cached(self, why, progress),
        }
    }

    fn warn_of_moving_revision(&self, progress: &mut dyn FnMut(HubEvent)) {
        let repo = self.repo;
        let text = match self.revision() {
            None if matches!(self.kind, RepoType::Dataset) => {
                format!("{repo}: a later run may get another version of this data set")
            }
            None => {
                format!("{repo}: no `revision` is pinned, so a later run may get another model")
            }
            Some(r) if !is_commit(r) => format!(
                "{repo}: the revision `{r}` can move; pin a commit (40 hex digits) to get the same \
                 model again"
            ),
            Some(_) => return,
        };
        progress(HubEvent::Warning { text });
    }

    fn record(&self, resolved: Option<&str>, how: ResolutionSource) -> RevisionRecord {
        RevisionRecord {
            role: self.options.role.clone(),
            repo_id: self.repo.to_owned(),
            revision_requested: self.options.revision.clone(),
            revision_resolved: resolved.map(str::to_owned),
            revision_pinned: resolved.or(self.revision()).map(str::to_owned),
            resolution_source: how,
        }
    }

    /// The model as the cache has it; `why` the hub is not asked, if it has none.
    fn use_cache(
        &self,
        why: String,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<ResolvedModel, HubError> {
        let commit = hub_cache::commit(&self.folder, self.revision());
        let files = commit.as_deref().and_then(|commit| {
            hub_cache::complete_model(&self.folder.join("snapshots").join(commit))
        });
        if let (Some(commit), Some(files)) = (commit, files) {
            progress(HubEvent::CacheHit { source: self.repo.to_owned() });
            let revision = self.record(Some(&commit), ResolutionSource::Cache);
            return Ok(ResolvedModel {
                source: self.repo.to_owned(),
                files,
                revision,
                sha256: None,
            });
        }
        let how = match self.revision() {
            Some(_) => ResolutionSource::PinnedUnverified,
            None => ResolutionSource::Unresolved,
        };
        Err(HubError::NotCached {
            source_name: self.repo.to_owned(),
            cache: self.options.hub_cache_dir.clone(),
            why,
            hint: "check the network, copy the model into the cache, or give a local folder",
            record: Box::new(self.record(None, how)),
        })
    }

    fn api(&self) -> Result<Api, HubError> {
        let token = self.options.token.as_ref().filter(|token| !token.is_empty());
        let mut builder = ApiBuilder::from_cache(Cache::new(self.options.hub_cache_dir.clone()))
            .with_progress(false)
            .with_retries(N_RETRIES)
            .with_token(token.map(|token| token.expose().to_owned()));
        if let Some(endpoint) = &self.options.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        builder.build().map_err(|e| self.download_error("", &e))
    }

    fn at(&self, api: &Api, revision: &str) -> ApiRepo {
        let repo = self.repo.to_owned();
        api.repo(Repo::with_revision(repo, self.kind, revision.to_owned()))
    }

    /// Asks what the revision is now. The client knows no deadline, so the question has a thread
    /// of its own, which is left behind if it takes too long.
    fn ask(&self, api: &Api) -> Result<RepoInfo, Unanswered> {
        let repo = self.at(api, self.revision().unwrap_or("main"));
        let (sender, answer) = mpsc::channel();
        std::thread::spawn(move || sender.send(repo.info()));
        match answer.recv_timeout(Duration::from_secs(RESOLVE_SECONDS_MAX)) {
            Ok(Ok(info)) if is_commit(&info.sha) => Ok(info),
            Ok(Ok(_)) => Err(Unanswered::Unreachable("the hub's answer is no commit".to_owned())),
            Ok(Err(error)) => match refusal(self.repo, &error) {
                Some(refused) => Err(Unanswered::Refused(refused)),
                None => Err(Unanswered::Unreachable(format!("the hub did not answer ({error})"))),
            },
            Err(_) => {
                let why = format!("the hub did not answer within {RESOLVE_SECONDS_MAX} seconds");
                Err(Unanswered::Unreachable(why))
            }
        }
    }

    /// Fetches what is not in the cache yet, at exactly the commit that the hub named.
    fn fetch(
        &self,
        api: &Api,
        info: &RepoInfo,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<ResolvedModel, HubError> {
        let commit = info.sha.as_str();
        let names: Vec<String> = info.siblings.iter().map(|s| s.rfilename.clone()).collect();
        let snapshot = self.folder.join("snapshots").join(commit);
        let repo = self.at(api, commit);
        let mut wanted = hub_cache::wanted(self.repo, &names)?;
        let mut n_done = 0;
        while n_done < wanted.len() {
            let name = wanted[n_done].clone();
            let path = snapshot.join(&name);
            if !path.is_file() {
                self.download(&repo, &name, &path, progress)?;
            }
            if name == INDEX {
                let io_error = |source| OpenError::Io { path: path.clone(), source };
                let bytes = std::fs::read(&path).map_err(io_error)?;
                let shards = hub_cache::shards(&bytes).map_err(|what| HubError::Repository {
                    repo: self.repo.to_owned(),
                    what: format!("{INDEX}: {what}"),
                })?;
                wanted.extend(shards);
            }
            n_done += 1;
        }
        let files = hub_cache::complete_model(&snapshot).ok_or_else(|| HubError::Repository {
            repo: self.repo.to_owned(),
            what: "its files are not a complete model".to_owned(),
        })?;
        self.remember(commit)?;
        let how = match self.revision() {
            Some(_) => ResolutionSource::PinnedResolved,
            None => ResolutionSource::Resolved,
        };
        let revision = self.record(Some(commit), how);
        Ok(ResolvedModel { source: self.repo.to_owned(), files, revision, sha256: None })
    }

    /// The data set as the cache has it; `why` the hub is not asked, if it has none.
    fn cached_dataset(
        &self,
        why: String,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<ResolvedDataset, HubError> {
        let commit = hub_cache::commit(&self.folder, self.revision());
        let found = commit.as_deref().map(|commit| (commit, self.snapshot(commit)));
        let complete =
            found.filter(|(commit, dir)| hub_cache::complete_dataset(dir, &self.listing(commit)));
        if let Some((commit, folder)) = complete {
            progress(HubEvent::CacheHit { source: self.repo.to_owned() });
            let revision = self.record(Some(commit), ResolutionSource::Cache);
            return Ok(ResolvedDataset { folder, revision });
        }
        let how = match self.revision() {
            Some(_) => ResolutionSource::PinnedUnverified,
            None => ResolutionSource::Unresolved,
        };
        Err(HubError::NotCached {
            source_name: self.repo.to_owned(),
            cache: self.options.hub_cache_dir.clone(),
            why,
            hint: "check the network, copy the data set into the cache, or give a local folder",
            record: Box::new(self.record(None, how)),
        })
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the names of a commit's data files are noted before the first is fetched, so that a
    /// fetch that was cut is not taken for a data set.
    fn listing(&self, commit: &str) -> PathBuf {
        self.folder.join(".forgelm").join(format!("{commit}.json"))
    }

    fn fetch_dataset(
        &self,
        api: &Api,
        info: &RepoInfo,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<ResolvedDataset, HubError> {
        let commit = info.sha.as_str();
        let names = info.siblings.iter().map(|file| file.rfilename.clone());
        let wanted = hub_cache::wanted_data(self.repo, names.collect())?;
        let listing = self.listing(commit);
        if let Some(folder) = listing.parent() {
            write::create_dir_all_durable(folder)?;
        }
        let text = serde_json::json!(wanted).to_string();
        write::atomic(&listing, text.as_bytes())?;
        let repo = self.at(api, commit);
        let snapshot = self.snapshot(commit);
        for name in &wanted {
            let path = snapshot.join(name);
            if !path.is_file() {
                self.download(&repo, name, &path, progress)?;
            }
        }
        self.remember(commit)?;
        let how = match self.revision() {
            Some(_) => ResolutionSource::PinnedResolved,
            None => ResolutionSource::Resolved,
        };
        Ok(ResolvedDataset { folder: snapshot, revision: self.record(Some(commit), how) })
    }

    /// Notes in the cache which commit the branch or tag is, for runs without the network.
    fn remember(&self, commit: &str) -> Result<(), HubError> {
        let revision = self.revision().unwrap_or("main");
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if let Some(folder) = path.parent() {
            write::create_dir_all_durable(folder)?;
        }
        Ok(write::atomic(&path, commit.as_bytes())?)
    }

    /// Fetches one file and checks it: large files are stored under their SHA-256.
    fn download(
        &self,
        repo: &ApiRepo,
        name: &str,
        path: &Path,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<(), HubError> {
        progress(HubEvent::Fetching { what: format!("{}/{name}", self.repo) });
        let file = name.to_owned();
        let watch = Watch { file, n_bytes_done: 0, n_bytes_total: 0, n_bytes_shown: 0, progress };
        let fetched =
            repo.download_with_progress(name, watch).map_err(|e| self.download_error(name, &e))?;
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let blob = fetched.canonicalize().map_err(io_error)?;
        let expected = blob.file_name().and_then(|n| n.to_str()).filter(|n| is_hex(n, 64));
        let Some(expected) = expected.map(str::to_owned) else { return Ok(()) };
        let found = sha256_file(&blob)?;
        if found.as_str() == expected {
            return Ok(());
        }
        // Neither name may stay: the next run would take the file for a good one.
        write::remove_file(&fetched)?;
        write::remove_file(&blob)?;
        Err(HubError::DownloadHash { path: blob, found: found.to_string(), expected })
    }

    fn download_error(&self, file: &str, error: &ApiError) -> HubError {
        let (repo, file) = (self.repo.to_owned(), file.to_owned());
        refusal(self.repo, error).unwrap_or_else(|| HubError::Download {
            repo,
            file,
            what: error.to_string(),
        })
    }
}

/// The hub's refusal, if that is what the error is.
fn refusal(repo: &str, error: &ApiError) -> Option<HubError> {
    let status = match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => status,
            _ => return None,
        },
        ApiError::TooManyRetries(error) => return refusal(repo, error),
        _ => return None,
    };
    let hint = match status {
        401 => "give a valid access token (`auth.hf_token`); a wrong name gets the same answer",
        403 => "accept the model's terms on the hub, with the account of your token",
        404 => "check the name and the revision",
        429 => "the hub asks to wait; try again later, or give an access token",
        _ => return None,
    };
    Some(HubError::Refused { repo: repo.to_owned(), status, hint })
}

/// Passes the client's progress on.
struct Watch<'a> {
    file: String,
    n_bytes_done: u64,
    n_bytes_total: u64,
    n_bytes_shown: u64,
    progress: &'a mut dyn FnMut(HubEvent),
}

impl Watch<'_> {
    fn show(&mut self) {
        self.n_bytes_shown = self.n_bytes_done;
        (self.progress)(HubEvent::Progress {
            file: self.file.clone(),
            n_bytes_done: self.n_bytes_done,
            n_bytes_total: self.n_bytes_total,
        });
    }
}

impl hf_hub::api::Progress for Watch<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        // Called again when a broken download is resumed.
        (self.n_bytes_done, self.n_bytes_total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        const SHOW_BYTES: u64 = 16 << 20;
        self.n_bytes_done += size as u64;
        if self.n_bytes_done >= self.n_bytes_shown + SHOW_BYTES {
            self.show();
        }
    }

    fn finish(&mut self) {
        self.show();
    }
}
