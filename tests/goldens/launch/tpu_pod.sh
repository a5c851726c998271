gcloud compute tpus queued-resources create poe-0 --node-id=poe-0 --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --service-account=runner@my-project.iam.gserviceaccount.com --labels=app=adx,adx-job=poe --async --project=my-project --zone=us-west4-a
gcloud compute tpus queued-resources create poe-1 --node-id=poe-1 --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --service-account=runner@my-project.iam.gserviceaccount.com --labels=app=adx,adx-job=poe --async --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-0 --worker=all '--command=set -euo pipefail
case "$(systemctl is-active adx-poe || true)" in
  active | activating) echo "$HOSTNAME: runs already"; exit 0 ;;
esac
sudo systemctl reset-failed adx-poe 2>/dev/null || true
sudo gcloud auth configure-docker us-docker.pkg.dev --quiet
sudo systemd-run --unit=adx-poe --setenv=HOME=/root '"'"'--property=RestartForceExitStatus=74 75'"'"' --property=RestartSec=30 --property=StartLimitIntervalSec=365d --property=StartLimitBurst=11 --property=TimeoutStopSec=60 /bin/bash -c '"'"'set -euo pipefail
HF_TOKEN="$$(gcloud secrets versions access projects/my-project/secrets/hub/versions/3)"
export HF_TOKEN
exec docker run --rm --name=adx-poe --privileged --net=host --env=HF_TOKEN us-docker.pkg.dev/my-project/adx/run:1 launch.run --config=configs/smollm2_poe.py --workdir=gs://bucket/poe --set=limit=64 --shard=0 --num_shards=2'"'"'' --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-1 --worker=all '--command=set -euo pipefail
case "$(systemctl is-active adx-poe || true)" in
  active | activating) echo "$HOSTNAME: runs already"; exit 0 ;;
esac
sudo systemctl reset-failed adx-poe 2>/dev/null || true
sudo gcloud auth configure-docker us-docker.pkg.dev --quiet
sudo systemd-run --unit=adx-poe --setenv=HOME=/root '"'"'--property=RestartForceExitStatus=74 75'"'"' --property=RestartSec=30 --property=StartLimitIntervalSec=365d --property=StartLimitBurst=11 --property=TimeoutStopSec=60 /bin/bash -c '"'"'set -euo pipefail
HF_TOKEN="$$(gcloud secrets versions access projects/my-project/secrets/hub/versions/3)"
export HF_TOKEN
exec docker run --rm --name=adx-poe --privileged --net=host --env=HF_TOKEN us-docker.pkg.dev/my-project/adx/run:1 launch.run --config=configs/smollm2_poe.py --workdir=gs://bucket/poe --set=limit=64 --shard=1 --num_shards=2'"'"'' --project=my-project --zone=us-west4-a
gcloud compute tpus queued-resources list --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-0 --worker=all '--command=sudo journalctl --unit=adx-poe --no-pager --lines=200' --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-1 --worker=all '--command=sudo journalctl --unit=adx-poe --no-pager --lines=200' --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-0 --worker=all '--command=sudo systemctl stop adx-poe || [ $? -eq 5 ]' --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-1 --worker=all '--command=sudo systemctl stop adx-poe || [ $? -eq 5 ]' --project=my-project --zone=us-west4-a
gcloud compute tpus queued-resources delete poe-0 --force --quiet --project=my-project --zone=us-west4-a
gcloud compute tpus queued-resources delete poe-1 --force --quiet --project=my-project --zone=us-west4-a
